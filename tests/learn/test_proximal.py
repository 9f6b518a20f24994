"""FedProx's term against its known iterates on a quadratic, in both places where it is added."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpcfl.config import TrainingTable
from mpcfl.dp.noise import NoiseShare
from mpcfl.dp.plan import NoisePlan, make_plan
from mpcfl.learn.local_dp import LocalTrainer
from mpcfl.learn.model import model_digest
from mpcfl.learn.task import Records
from mpcfl.learn.train import local_update

STEPS, RATE, MU = 4, 0.25, 0.5
START = torch.tensor([1.0, -2.0, 0.5])
TARGET = torch.tensor([3.0, 1.0, -1.5])
RECORDS = 6


class Point(nn.Module):
    """The outputs are the parameters, one row per record."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 3, bias=False)
        with torch.no_grad():
            self.line.weight.copy_(START[:, None])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.line(inputs)
        return outputs


class Quadratic:
    """Each record's loss is half the squared distance from the same point."""

    def model(self) -> nn.Module:
        return Point()

    def party_data(self, party: int, n_parties: int) -> Records:
        return torch.ones(RECORDS, 1), TARGET.repeat(RECORDS, 1)

    def test_data(self) -> Records:
        return self.party_data(0, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 2).sum() / 2 / len(outputs)


def training(**changes: object) -> TrainingTable:
    table = {"rounds": 2, "local_steps": STEPS, "learning_rate": RATE, "proximal_mu": MU}
    return TrainingTable.model_validate({**table, **changes})


def change_by_hand(steps: int, mu: float, shift: float = 0.0) -> np.ndarray:
    """w_k - w_0 in closed form.

    A step is w <- w - rate ((w - target + shift) + mu (w - w_0)): with d = w - w_0 this is
    d <- (1 - rate (1 + mu)) d + rate (target - shift - w_0), a geometric series.
    """
    shrink = 1 - RATE * (1 + mu)
    towards = (TARGET - START).double().numpy() - shift
    change: np.ndarray = RATE * towards * (1 - shrink**steps) / (1 - shrink)
    return change


@pytest.mark.parametrize("mu", [0.0, 0.125, 0.5, 3.0])
def test_local_steps_are_the_known_iterates(mu: float) -> None:
    task = Quadratic()
    update = local_update(task.model(), task.party_data(0, 1), task, training(proximal_mu=mu), 0)
    # Four float32 steps with numbers of order one.
    np.testing.assert_allclose(update[0], change_by_hand(STEPS, mu), rtol=0, atol=1e-6)


def test_the_term_pulls_to_the_model_of_its_own_round() -> None:
    task, model = Quadratic(), Quadratic().model()
    with torch.no_grad():
        model.line.weight.copy_(TARGET[:, None])
    digest = model_digest(model)
    update = local_update(model, task.party_data(0, 1), task, training(proximal_mu=2.0), 1)
    # There the loss is least: nothing moves, wherever an earlier round began.
    np.testing.assert_array_equal(update, 0.0)
    assert model_digest(model) == digest


class SometimesUsed(nn.Module):
    """A second weight is in the loss of the first record only."""

    def __init__(self) -> None:
        super().__init__()
        self.always = nn.Parameter(torch.tensor([1.0]))
        self.first_only = nn.Parameter(torch.tensor([1.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.always + (self.first_only if bool(inputs[0] > 0) else 0.0)


class SumOfOutputs(Quadratic):
    def model(self) -> nn.Module:
        return SometimesUsed()

    def party_data(self, party: int, n_parties: int) -> Records:
        return torch.tensor([[1.0], [0.0]]), torch.zeros(2)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum()


def test_a_weight_that_a_batch_does_not_use_is_pulled_back_all_the_same() -> None:
    task = SumOfOutputs()
    table = training(local_steps=2, batch_size=1)
    update = local_update(task.model(), task.party_data(0, 1), task, table, 0)
    # First step: both gradients are 1. Second: always 0, first_only none; both are pulled.
    after = -RATE + RATE * MU * RATE
    np.testing.assert_allclose(update[0], [after, after], rtol=0, atol=1e-7)


def local_plan(clip_norm: float) -> NoisePlan:
    pytest.importorskip("opacus")
    return make_plan(
        epsilon=8.0,
        delta=1e-5,
        rounds=2,
        local_steps=STEPS,
        parties=2,
        dim=3,
        clip_norm=clip_norm,
        modulus_bits=32,
        unit="record",
        placement="local",
        sample_rate=1.0,
        records=2 * RECORDS,
    )


@pytest.mark.parametrize("shift", [0.0, 0.75])
def test_in_local_dp_the_term_is_added_to_the_noised_gradient(
    monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    """A known constant in place of the noise: neither it nor the term is clipped or doubled."""
    plan = local_plan(clip_norm=64.0)
    levels = round(shift * RECORDS * plan.scale)
    monkeypatch.setattr(
        "mpcfl.learn.exact_optimizer.draw_noise_share",
        lambda plan, bits: NoiseShare(np.full(plan.dim, levels, dtype=np.int64)),
    )
    task = Quadratic()
    trainer = LocalTrainer(task.party_data(0, 1), task, training(), plan)
    update = trainer.update(task.model(), 0)
    # Six records whose gradients are rounded to the grid, and float32 steps.
    tolerance = 1e-6 + STEPS / plan.scale
    np.testing.assert_allclose(update[0], change_by_hand(STEPS, MU, shift), rtol=0, atol=tolerance)


def test_in_local_dp_the_term_moves_no_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is clipped and noised are the records' gradients at the model as it stands, alone."""
    # Gradients of norm 4.1 at first are clipped to 0.5; the term is not.
    plan, mu = local_plan(clip_norm=0.5), 2.0
    monkeypatch.setattr(
        "mpcfl.learn.exact_optimizer.draw_noise_share",
        lambda plan, bits: NoiseShare(np.zeros(plan.dim, dtype=np.int64)),
    )
    task = Quadratic()
    trainer = LocalTrainer(task.party_data(0, 1), task, training(proximal_mu=mu), plan)
    update = trainer.update(task.model(), 0)[0]
    towards = (TARGET - START).double().numpy()
    unit = towards / np.linalg.norm(towards)
    change = np.zeros(3)
    for _ in range(STEPS):
        change += RATE * (0.5 * unit - mu * change)
    np.testing.assert_allclose(update, change, rtol=0, atol=1e-5 + STEPS / plan.scale)
