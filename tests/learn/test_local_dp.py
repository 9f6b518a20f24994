from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

pytest.importorskip("opacus")

from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.layers import DPLSTM

from mpcfl.config import Placement, TrainingTable
from mpcfl.dp.grid import round_grid
from mpcfl.dp.noise import NoiseShare
from mpcfl.dp.plan import NoisePlan, make_plan
from mpcfl.dp.sampler import draw_discrete_gaussian, poisson_sample
from mpcfl.errors import BackendUnavailable, ConfigError
from mpcfl.hazmat.bits import KeystreamBits, SystemBits, raw_keyed_bits
from mpcfl.learn.exact_optimizer import ExactEngine, ExactOptimizer
from mpcfl.learn.local_check import check_local_layers, check_local_training
from mpcfl.learn.local_dp import LocalTrainer
from mpcfl.learn.model import flat_parameters, initial_model, load_flat_parameters, model_digest
from mpcfl.learn.task import Records

RECORDS, PIXELS, CLASSES = 24, 4, 3
DIM = PIXELS * CLASSES + CLASSES
STEPS = 3
FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


class MadeUpTask:
    """Any model on made-up data, and any loss."""

    def __init__(
        self,
        build: Callable[[], nn.Module] = lambda: nn.Linear(PIXELS, CLASSES),
        shape: tuple[int, ...] = (PIXELS,),
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        self.build, self._loss = build, loss
        # Small integers over 8: their products are exact in float32.
        self.inputs = torch.randint(-16, 17, (RECORDS, *shape), generator=generator) / 8
        self.targets = torch.randint(CLASSES, (RECORDS,), generator=generator)

    def model(self) -> nn.Module:
        return self.build()

    def party_data(self, party: int, n_parties: int) -> Records:
        return self.inputs, self.targets

    def test_data(self) -> Records:
        return self.inputs, self.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)


def training(**changes: object) -> TrainingTable:
    return TrainingTable.model_validate(
        {"rounds": 4, "local_steps": STEPS, "learning_rate": 0.5, **changes}
    )


def local_plan(**changes: object) -> NoisePlan:
    arguments: dict[str, object] = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "rounds": 4,
        "local_steps": STEPS,
        "parties": 2,
        "dim": DIM,
        "clip_norm": 2.0,
        "modulus_bits": 32,
        "unit": "record",
        "placement": "local",
        "sample_rate": 0.5,
        "records": 2 * RECORDS,
    }
    return make_plan(**{**arguments, **changes})  # type: ignore[arg-type]  # checked by make_plan


@pytest.fixture(scope="module")
def plan() -> NoisePlan:
    return local_plan()


@pytest.fixture(scope="module")
def full_plan() -> NoisePlan:
    return local_plan(sample_rate=1.0)


def keyed(key: int) -> KeystreamBits:
    return raw_keyed_bits(key.to_bytes(32, "big"))


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise: for tests of everything else."""
    monkeypatch.setattr(
        "mpcfl.learn.exact_optimizer.draw_noise_share",
        lambda plan, bits: NoiseShare(np.zeros(plan.dim, dtype=np.int64)),
    )


def rows_by_autograd(model: nn.Module, task: MadeUpTask, sample: np.ndarray) -> np.ndarray:
    """One plain backward pass per record."""
    rows = []
    for index in sample:
        loss = task.loss(model(task.inputs[index][None]), task.targets[index][None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.array(rows).reshape(len(sample), -1)


def levels_by_hand(rows: np.ndarray, plan: NoisePlan) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    clipped = (
        rows * np.minimum(1.0, plan.clip_norm * (1 - 1e-9) / np.maximum(norms, 1e-300))[:, None]
    )
    return np.rint(clipped * plan.scale).astype(np.int64).sum(axis=0)


def dp_sgd_by_hand(
    task: MadeUpTask, plan: NoisePlan, bits: KeystreamBits, learning_rate: float = 0.5
) -> np.ndarray:
    """The same local steps in plain PyTorch and NumPy."""
    model = initial_model(task, seed=2)
    assert plan.records is not None
    batch_size = torch.tensor(plan.sample_rate * plan.records / plan.parties)
    for _ in range(STEPS):
        sample = poisson_sample(RECORDS, plan.sample_rate, bits)
        levels = levels_by_hand(rows_by_autograd(model, task, sample), plan)
        noised = levels + draw_discrete_gaussian(plan.local_sigma, plan.dim, bits)
        gradient = torch.tensor(noised / plan.scale, dtype=torch.float32) / batch_size
        with torch.no_grad():
            done = 0
            for parameter in model.parameters():
                piece = gradient[done : done + parameter.numel()].view_as(parameter)
                parameter.add_(piece, alpha=-learning_rate)
                done += parameter.numel()
    return flat_parameters(model) - flat_parameters(initial_model(task, seed=2))


def product_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient at a record is the record, whatever the parameters: exact."""
    signs = torch.tensor([1.0, -1.0, 0.5])
    return (outputs * signs).sum() + 0.0 * targets.sum()


def test_update_equals_dp_sgd_by_hand_to_the_last_bit(plan: NoisePlan) -> None:
    task = MadeUpTask(loss=product_loss)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(), plan, keyed(5))
    update = trainer.update(initial_model(task, seed=2), round_id=0)
    assert update.shape == (1, DIM)
    assert update.dtype == np.float64
    np.testing.assert_array_equal(update[0], dp_sgd_by_hand(task, plan, keyed(5)))


@pytest.mark.parametrize("microbatch", [1, 5, 256])
def test_update_equals_dp_sgd_by_hand_where_gradients_depend_on_the_model(
    plan: NoisePlan, microbatch: int
) -> None:
    task = MadeUpTask()
    table = training(microbatch=microbatch)
    trainer = LocalTrainer(task.party_data(0, 2), task, table, plan, keyed(6))
    update = trainer.update(initial_model(task, seed=2), round_id=0)[0]
    expected = dp_sgd_by_hand(task, plan, keyed(6))
    # Float32 gradients of a few terms, three steps, parameters of about one.
    tolerance = 1000 * FLOAT32_EPSILON * np.abs(expected).max()
    np.testing.assert_allclose(update, expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("silence")
def test_every_record_is_taken_once_without_sampling(full_plan: NoisePlan) -> None:
    task = MadeUpTask(loss=product_loss)
    table = training(local_steps=1)
    quiet = replace(full_plan, local_steps=1)
    update = LocalTrainer(task.party_data(0, 2), task, table, quiet).update(task.model(), 0)
    rows = rows_by_autograd(task.model(), task, np.arange(RECORDS))
    expected = -0.5 * levels_by_hand(rows, quiet) / quiet.scale / RECORDS
    # One float32 rounding of the gradient, of the quotient, and of each parameter near one.
    np.testing.assert_allclose(update[0], expected, rtol=0, atol=4 * FLOAT32_EPSILON)


class Summed(ExactOptimizer):
    """Keeps the integer sum of each step, as no program may."""

    sums: list[np.ndarray]

    def add_noise(self) -> None:
        assert self._levels is not None
        Summed.sums.append(self._levels.copy())
        super().add_noise()


def integer_sum(
    records: Records, task: MadeUpTask, plan: NoisePlan, microbatch: int = 1
) -> np.ndarray:
    """The sum of one step without sampling, before its noise."""
    Summed.sums = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpcfl.learn.exact_optimizer.ExactOptimizer", Summed)
        table = training(local_steps=1, microbatch=microbatch)
        plan = replace(plan, local_steps=1)
        LocalTrainer(records, task, table, plan).update(initial_model(task, 2), 0)
    return Summed.sums[0].astype(object)


@pytest.mark.parametrize("extra", [1.0, 1e-3, 1e30, math.nan, math.inf])
def test_one_record_more_moves_the_integers_by_the_bound_at_most(
    full_plan: NoisePlan, extra: float
) -> None:
    task = MadeUpTask()
    without = integer_sum(task.party_data(0, 2), task, full_plan)
    record = torch.full((1, PIXELS), extra)
    # The class that the model thinks least of: a gradient that is not zero.
    target = initial_model(task, 2)(record.clamp(max=1.0)).argmin(dim=1)
    inputs, targets = torch.cat([task.inputs, record]), torch.cat([task.targets, target])
    moved = int(sum((integer_sum((inputs, targets), task, full_plan) - without) ** 2))
    assert moved <= full_plan.norm_bound_int
    if math.isfinite(extra) and extra >= 1:  # such a gradient is clipped: the bound is used up
        assert moved >= 0.999 * full_plan.norm_bound_int


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_record_is_scaled_by_how_many_others_there_are(
    full_plan: NoisePlan, reduction: str
) -> None:
    task = MadeUpTask(loss=lambda o, t: cross_entropy(o, t, reduction=reduction))
    task.inputs[:] = task.inputs[0] / 64  # far below the clip norm
    task.targets[:] = 0
    one = integer_sum((task.inputs[:1], task.targets[:1]), task, full_plan)
    alone = integer_sum(task.party_data(0, 2), task, full_plan)
    np.testing.assert_array_equal(alone, RECORDS * one)
    together = integer_sum(task.party_data(0, 2), task, full_plan, microbatch=256)
    # In a batch float32 may round otherwise.
    tolerance = 10 * FLOAT32_EPSILON * RECORDS * float(np.abs(one).max())
    np.testing.assert_allclose(together.astype(float), alone.astype(float), rtol=0, atol=tolerance)


@pytest.mark.stat
def test_noise_of_a_step_has_the_planned_variance(full_plan: NoisePlan) -> None:
    # False positives: 1e-9 (z of 6.1, both sides). Power: sigma off by a factor 1.05 moves the
    # variance by 10 %, 15 standard deviations of its estimate from 45,000 draws.
    steps = 3000
    task = MadeUpTask()
    plan = replace(full_plan, local_steps=steps)
    table = training(local_steps=steps, learning_rate=1.0)
    engine = ExactEngine()
    _, optimizer = engine.attach(task.model(), round_grid(plan, 0), table.learning_rate, None)
    draws = []
    for _ in range(steps):
        optimizer.clip_and_accumulate([])
        optimizer.add_noise()
        draws.append(torch.cat([p.grad.reshape(-1) for p in optimizer.params]))
    noise = torch.cat(draws).double().numpy() * plan.scale
    n = noise.size
    assert n == steps * DIM
    z = (np.mean(noise**2) / plan.local_sigma**2 - 1) / math.sqrt(2 / n)
    assert abs(z) < 6.1
    assert abs(np.mean(noise)) < 6.1 * plan.local_sigma / math.sqrt(n)


@pytest.mark.stat
@pytest.mark.usefixtures("silence")
def test_samples_are_poisson_and_independent(plan: NoisePlan) -> None:
    # False positives: 1e-9 each (z of 6.2, both sides). Power: a rate off by 0.03, or a correlation
    # of 0.06 between two steps or two records, is found in 24,000 decisions almost surely.
    steps = 1000
    task = MadeUpTask(loss=product_loss)
    # One coordinate per record, so that the update tells who was sampled.
    task.inputs = torch.eye(RECORDS)
    quiet = replace(plan, dim=RECORDS, local_steps=1, saturation_int=2**40)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() + 0.0 * targets.sum()

    task = replace_loss(task, loss)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(local_steps=1), quiet)
    model = nn.Linear(RECORDS, 1, bias=False)
    nn.init.zeros_(model.weight)
    picked = np.array([trainer.update(model, i)[0] != 0 for i in range(steps)])
    deviations = (picked - plan.sample_rate) / math.sqrt(plan.sample_rate * (1 - plan.sample_rate))
    assert abs(deviations.sum()) < 6.2 * math.sqrt(deviations.size)
    for products in (deviations[1:] * deviations[:-1], deviations[:, 1:] * deviations[:, :-1]):
        assert abs(products.sum()) < 6.2 * math.sqrt(products.size)


def replace_loss(task: MadeUpTask, loss: Callable[[Tensor, Tensor], Tensor]) -> MadeUpTask:
    task._loss = loss
    return task


@pytest.mark.usefixtures("silence")
def test_record_that_is_not_finite_or_fails_counts_as_zero_and_stops_nothing(
    full_plan: NoisePlan,
) -> None:
    good, bad = MadeUpTask(), MadeUpTask()
    bad.inputs[3] = float("nan")
    bad.inputs[4] = float("inf")
    bad.targets[5] = 99  # no such class: cross entropy refuses it
    kept = [i for i in range(RECORDS) if i not in {3, 4, 5}]
    model = initial_model(good, seed=2)
    expected = LocalTrainer((good.inputs[kept], good.targets[kept]), good, training(), full_plan)
    for microbatch in (1, 5, 256):
        trainer = LocalTrainer(
            bad.party_data(0, 2), bad, training(microbatch=microbatch), full_plan
        )
        update = trainer.update(model, 0)
        # As where gradients depend on the model.
        np.testing.assert_allclose(
            update, expected.update(model, 0), rtol=0, atol=1000 * FLOAT32_EPSILON
        )
        assert trainer.not_finite == 3 * STEPS


class FailsOnTheWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        ctx.fails = bool((values > 50).any())  # type: ignore[attr-defined]  # a context takes any
        return values.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        if ctx.fails:  # type: ignore[attr-defined]  # a context takes any
            raise RuntimeError("a record is too large")
        return gradients[0]


class UsedTwice(nn.Module):
    """Fails between the two uses of one layer, so that Opacus has done half of its work."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(PIXELS, PIXELS)
        self.head = nn.Linear(PIXELS, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        middle: Tensor = FailsOnTheWayBack.apply(self.inner(inputs))
        outputs: Tensor = self.head(self.inner(middle))
        return outputs


@pytest.mark.usefixtures("silence")
def test_pass_that_fails_half_way_back_leaves_nothing_behind(full_plan: NoisePlan) -> None:
    task = MadeUpTask(UsedTwice)
    model = initial_model(task, seed=2)
    plan = replace(full_plan, dim=flat_parameters(model).size)
    task.inputs[3] = 1e4 * torch.sign(model.inner.weight[0].detach())
    kept = [i for i in range(RECORDS) if i != 3]
    check_local_training(model, MadeUpTask(UsedTwice), training(), plan)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(), plan)
    expected = LocalTrainer((task.inputs[kept], task.targets[kept]), task, training(), plan)
    np.testing.assert_allclose(
        trainer.update(model, 0),
        expected.update(model, 0),
        rtol=0,
        atol=1000 * FLOAT32_EPSILON,  # as where gradients depend on the model
    )
    assert trainer.not_finite == STEPS
    assert expected.not_finite == 0


def test_records_that_carry_a_graph_are_trained_on_like_any_others(plan: NoisePlan) -> None:
    task = MadeUpTask()
    inputs = task.inputs * torch.ones(1, requires_grad=True)
    trainer = LocalTrainer((inputs, task.targets), task, training(), plan)
    trainer.update(initial_model(task, seed=2), 0)
    assert trainer.not_finite == 0


def test_party_on_whose_every_record_training_fails_still_adds_noise(plan: NoisePlan) -> None:
    task = MadeUpTask()
    task.targets[:] = 99
    model = initial_model(task, seed=2)
    update = LocalTrainer(task.party_data(0, 2), task, training(), plan).update(model, 0)
    assert np.isfinite(update).all()
    assert (update != 0).all()


def test_empty_sample_is_a_step_with_noise_only(
    plan: NoisePlan, request: pytest.FixtureRequest
) -> None:
    task = MadeUpTask()
    model = initial_model(task, seed=2)
    rare = replace(plan, sample_rate=2.0**-60)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(), rare)
    assert (trainer.update(model, 0) != 0).all()
    assert steps_of(trainer) == STEPS
    request.getfixturevalue("silence")
    assert not trainer.update(model, 1).any()


@pytest.mark.usefixtures("silence")
def test_denominator_is_public(plan: NoisePlan) -> None:
    task = MadeUpTask(loss=product_loss)
    quiet = replace(plan, sample_rate=1.0, local_steps=1)
    few, many = (
        LocalTrainer((task.inputs[:n], task.targets[:n]), task, training(local_steps=1), quiet)
        for n in (1, 2)
    )
    task.inputs[1] = task.inputs[0]
    model = nn.Linear(PIXELS, CLASSES)
    load_flat_parameters(model, np.zeros(DIM))
    # Twice the records, twice the step: a mean over the true count would hide that.
    np.testing.assert_allclose(many.update(model, 0), 2 * few.update(model, 0), rtol=1e-6)


def steps_of(trainer: LocalTrainer) -> int:
    return sum(steps for _, _, steps in trainer.account()["history"])


def test_one_engine_accounts_for_all_rounds(plan: NoisePlan) -> None:
    task = MadeUpTask()
    model = initial_model(task, seed=2)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(microbatch=3), plan)
    for round_id in range(4):
        assert steps_of(trainer) == round_id * STEPS
        trainer.update(model, round_id)
    assert trainer.account()["history"] == [(plan.noise_multiplier, 0.5, 4 * STEPS)]


def test_reported_epsilon_lies_between_those_of_opacus(plan: NoisePlan) -> None:
    task = MadeUpTask()
    model = initial_model(task, seed=2)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(), plan)
    for round_id in range(plan.rounds):
        trainer.update(model, round_id)
    account = trainer.account()
    ours = plan.epsilon(plan.rounds)
    renyi, numerical = RDPAccountant(), PRVAccountant()
    renyi.history = numerical.history = account["history"]
    assert ours <= renyi.get_epsilon(plan.delta)
    # PRV reports its estimate plus eps_error, and the true figure is within eps_error of that.
    error = 0.01
    assert numerical.get_epsilon(plan.delta, eps_error=error) - 2 * error <= ours
    assert ours <= numerical.get_epsilon(plan.delta, eps_error=error)


def test_model_and_torchs_generator_are_left_as_they_were(plan: NoisePlan) -> None:
    task = MadeUpTask()
    model = initial_model(task, seed=2).eval()
    keys, digest = list(model.state_dict()), model_digest(model)
    generator = torch.get_rng_state()
    check_local_training(model, task, training(), plan)
    LocalTrainer(task.party_data(0, 2), task, training(), plan).update(model, 0)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model_digest(model) == digest
    assert list(model.state_dict()) == keys
    assert not model.training
    assert not model._forward_hooks
    assert not model._backward_hooks
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in model.parameters())


def test_two_updates_of_one_model_share_neither_sample_nor_noise(full_plan: NoisePlan) -> None:
    task = MadeUpTask()
    model = initial_model(task, seed=2)
    trainer = LocalTrainer(task.party_data(0, 2), task, training(), full_plan)
    updates = [trainer.update(model, 0) for _ in range(2)]
    assert (updates[0] != updates[1]).all()


def test_a_plan_of_another_placement_is_a_mistake_of_the_caller(plan: NoisePlan) -> None:
    task = MadeUpTask()
    for wrong in (
        replace(plan, placement=Placement.DISTRIBUTED),
        replace(plan, local_steps=STEPS + 1),
    ):
        with pytest.raises(ValueError, match="not one of local training"):
            LocalTrainer(task.party_data(0, 2), task, training(), wrong)


class LastOutput(nn.Module):
    def __init__(self, recurrent: type[nn.Module]) -> None:
        super().__init__()
        self.recurrent = recurrent(2, 5, batch_first=True)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.recurrent(inputs)[0][:, -1])
        return outputs


def sound(build: Callable[[], nn.Module], shape: tuple[int, ...] = (PIXELS,)) -> MadeUpTask:
    return MadeUpTask(build, shape)


@pytest.mark.parametrize(
    "task",
    [
        sound(lambda: nn.Linear(PIXELS, CLASSES)),
        sound(lambda: LastOutput(DPLSTM), (3, 2)),
        sound(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(PIXELS, CLASSES))),
        MadeUpTask(loss=lambda outputs, targets: cross_entropy(dropout(outputs), targets)),
        sound(
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, CLASSES)
            ),
            (1, 4, 4),
        ),
        sound(
            lambda: nn.Sequential(nn.Linear(PIXELS, 4).requires_grad_(False), nn.Linear(4, CLASSES))
        ),
    ],
    ids=["linear", "lstm of opacus", "dropout", "dropout in the loss", "convolution", "frozen"],
)
def test_sound_models_pass_the_check_and_train(task: MadeUpTask, plan: NoisePlan) -> None:
    model = initial_model(task, seed=2)
    fitting = replace(plan, dim=flat_parameters(model).size)
    generator = torch.get_rng_state()
    check_local_training(model, task, training(), fitting)
    assert torch.equal(torch.get_rng_state(), generator)
    update = LocalTrainer(task.party_data(0, 2), task, training(), fitting).update(model, 0)
    assert (update != 0).all()


def refusal(task: MadeUpTask, plan: NoisePlan) -> str:
    model = initial_model(task, seed=2)
    digest = model_digest(model)
    with pytest.raises(ConfigError) as raised:
        check_local_training(model, task, training(), plan)
    assert model_digest(model) == digest
    return str(raised.value)


def test_batch_normalization_is_refused_with_its_remedy(plan: NoisePlan) -> None:
    task = sound(lambda: nn.Sequential(nn.BatchNorm1d(PIXELS), nn.Linear(PIXELS, CLASSES)))
    message = refusal(task, plan)
    assert "BatchNorm cannot support training" in message
    assert 'BatchNorm1d at "0" becomes GroupNorm' in message


def test_layers_that_opacus_refuses_are_named_with_what_it_would_do(plan: NoisePlan) -> None:
    message = refusal(sound(lambda: LastOutput(nn.LSTM), (3, 2)), plan)
    assert "We do not support nn.LSTM" in message
    assert 'LSTM at "recurrent" becomes DPLSTM' in message
    assert "mpcfl never changes a model by itself" in message
    message = refusal(sound(lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), (3, 4)), plan)
    assert 'MultiheadAttention at "0" becomes DPMultiheadAttention' in message
    assert "out_proj" not in message
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    message = refusal(
        sound(lambda: nn.Sequential(norm, nn.Flatten(), nn.Linear(6, CLASSES)), (2, 3)), plan
    )
    assert "Just say no to running stats" in message
    assert "track_running_stats=False" in message
    assert message.count("InstanceNorm1d(2") == 2


class MixesRecords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(PIXELS, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs - inputs.mean(dim=0))
        return outputs


class WithBuffer(nn.Linear):
    def __init__(self) -> None:
        super().__init__(PIXELS, CLASSES)
        self.register_buffer("seen", torch.zeros(1))


class UsesAnothersWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(PIXELS, PIXELS)
        self.second = nn.Linear(PIXELS, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs) @ self.first.weight)
        return outputs


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (MixesRecords, "mixes the records of a batch"),
        (UsesAnothersWeight, r"outside the forward\(\) of its own layer"),
        (WithBuffer, r"Opacus can't differentiate .* buffers"),
        (lambda: nn.Linear(PIXELS + 1, CLASSES), "Opacus can't differentiate .*RuntimeError"),
    ],
)
def test_models_without_gradients_of_each_record_are_refused(
    build: Callable[[], nn.Module], words: str, plan: NoisePlan
) -> None:
    with pytest.raises(ConfigError, match=words):
        check_local_training(initial_model(sound(build), 2), sound(build), training(), plan)


def test_without_opacus_the_error_names_the_extra(
    plan: NoisePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = MadeUpTask()
    monkeypatch.delitem(sys.modules, "mpcfl.learn.exact_optimizer")
    monkeypatch.delattr("mpcfl.learn.exact_optimizer", raising=False)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "mpcfl\[local\]"'):
        check_local_training(task.model(), task, training(), plan)


def test_noise_needs_no_torchcsprng(plan: NoisePlan) -> None:
    assert "torchcsprng" not in sys.modules
    _, optimizer = ExactEngine().attach(
        MadeUpTask().model(), round_grid(plan, 0), 0.5, SystemBits()
    )
    assert optimizer.generator is None


def test_noise_without_a_sum_before_it_is_a_mistake(plan: NoisePlan) -> None:
    _, optimizer = ExactEngine().attach(MadeUpTask().model(), round_grid(plan, 0), 0.5, None)
    optimizer.clip_and_accumulate([])
    optimizer.add_noise()
    with pytest.raises(RuntimeError, match="without clip_and_accumulate"):
        optimizer.add_noise()


class MeanMix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0)


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().sum()
        return x


@pytest.mark.parametrize(
    "layers",
    [
        (MeanMix(), nn.Dropout(0.1)),
        (MeanMix(), nn.AlphaDropout(0.1)),
        (Remembers(),),
    ],
    ids=["mixing beside dropout", "mixing beside alpha dropout", "a buffer with a memory"],
)
def test_dropout_hides_no_layer_that_mixes_records(layers: tuple[nn.Module, ...]) -> None:
    task = MadeUpTask()
    model = nn.Sequential(nn.Linear(PIXELS, 5), *layers, nn.Linear(5, CLASSES))
    with pytest.raises(ConfigError, match=r"other records|buffer"):
        check_local_training(model, task, training(), local_plan(dim=flat_parameters(model).size))


class MixesAndDraws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return dropout(x - x.mean(dim=0), 0.1, self.training)


def test_functional_dropout_hides_no_mixing_either() -> None:
    task = MadeUpTask()
    model = nn.Sequential(nn.Linear(PIXELS, 5), MixesAndDraws(), nn.Linear(5, CLASSES))
    with pytest.raises(ConfigError, match="other records"):
        check_local_training(model, task, training(), local_plan(dim=flat_parameters(model).size))


def test_opacus_words_are_shown_for_a_model_that_cannot_be_pickled() -> None:
    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(PIXELS, CLASSES)

    with pytest.raises(ConfigError, match="LSTM"):
        check_local_layers(Local())
