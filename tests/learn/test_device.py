"""What goes to `training.device` and what stays; a GPU is stood in for, since none may be here.

The stand-in answers every ``.to("cuda")`` with the CPU and writes it down, so these tests show
what is sent and what is not. That CUDA computes the same is shown only where there is a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from mpcfl.config import TrainingTable
from mpcfl.dp.plan import make_plan
from mpcfl.errors import ConfigError
from mpcfl.learn.device import check_device, secret_device_generator
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.local_check import check_local_training
from mpcfl.learn.local_dp import LocalTrainer
from mpcfl.learn.model import initial_model
from mpcfl.learn.task import Records
from mpcfl.learn.train import (
    check_local_update,
    check_record_gradients,
    local_update,
    record_gradients,
)

CUDA = torch.device("cuda")


class SmallTask:
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 3))

    def party_data(self, party: int, n_parties: int) -> Records:
        return torch.ones(20, 64), torch.arange(20) % 3

    def test_data(self) -> Records:
        return self.party_data(0, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


def table(**changes: object) -> TrainingTable:
    return TrainingTable.model_validate(
        {"rounds": 1, "device": "cuda", "local_steps": 2, "batch_size": 5, **changes}
    )


@dataclass
class Sent:
    """What was moved where."""

    modules: list[nn.Module] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Stand in for one GPU."""
    sent, tensor_to, module_to = Sent(), Tensor.to, nn.Module.to

    def is_cuda(arguments: tuple[Any, ...]) -> bool:
        return isinstance(arguments[0], torch.device | str) and "cuda" in str(arguments[0])

    def send_tensor(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if not is_cuda(arguments):
            return tensor_to(tensor, *arguments, **options)
        sent.shapes.append(tuple(tensor.shape))
        return tensor

    def send_module(module: nn.Module, *arguments: Any, **options: Any) -> nn.Module:
        if not is_cuda(arguments):
            return module_to(module, *arguments, **options)
        sent.modules.append(module)
        return module

    monkeypatch.setattr(Tensor, "to", send_tensor)
    monkeypatch.setattr(nn.Module, "to", send_module)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    return sent


def all_rows(model: nn.Module, task: SmallTask, training: TrainingTable) -> np.ndarray:
    blocks = record_gradients(model, task.party_data(0, 1), task, np.arange(7), training)
    return np.concatenate(list(blocks))


@pytest.mark.parametrize(
    ("gradients", "microbatch", "sizes"),
    [("vmap", 4, {4}), ("opacus", 4, {4}), ("opacus", 1, {1})],
)
def test_record_level_sends_a_copy_and_blocks_of_records(
    gpu: Sent, gradients: str, microbatch: int, sizes: set[int]
) -> None:
    if gradients == "opacus":
        pytest.importorskip("opacus")
    task = SmallTask()
    model = initial_model(task, seed=0)
    rows = all_rows(model, task, table(gradients=gradients, microbatch=microbatch))
    assert np.isfinite(rows).all()
    assert model not in gpu.modules
    inputs = [shape for shape in gpu.shapes if len(shape) == 2 and shape[1] == 64 and shape[0] != 3]
    assert {shape[0] for shape in inputs} == sizes
    # As many targets as inputs; a bias has the shape (3,).
    targets = [shape for shape in gpu.shapes if len(shape) == 1 and shape != (3,)]
    assert [shape[0] for shape in targets] == [shape[0] for shape in inputs]
    parameters = [shape for shape in gpu.shapes if shape in {(3, 64), (3,)}]
    assert (len(gpu.modules), len(parameters)) == ((0, 2) if gradients == "vmap" else (1, 0))


def test_party_level_sends_a_copy_and_batches(gpu: Sent) -> None:
    task = SmallTask()
    model = initial_model(task, seed=0)
    local_update(model, task.party_data(0, 1), task, table(), 0)
    assert gpu.shapes == [(5, 64), (5,)] * 2
    assert len(gpu.modules) == 1
    assert model not in gpu.modules


def test_the_proximal_term_is_where_the_copy_is(gpu: Sent) -> None:
    task = SmallTask()
    local_update(
        initial_model(task, seed=0), task.party_data(0, 1), task, table(proximal_mu=1.0), 0
    )
    # The global model's parameters; their copies already lie where they are trained.
    assert gpu.shapes == [(5, 64), (5,)] * 2
    assert len(gpu.modules) == 1


def test_local_placement_sends_a_copy_and_blocks_of_records(gpu: Sent) -> None:
    pytest.importorskip("opacus")
    task = SmallTask()
    model = initial_model(task, seed=0)
    plan = make_plan(
        epsilon=8.0,
        delta=1e-5,
        rounds=1,
        local_steps=2,
        parties=2,
        dim=195,
        clip_norm=1.0,
        modulus_bits=32,
        unit="record",
        placement="local",
        sample_rate=1.0,
        records=40,
    )
    check_local_training(model, task, table(), plan)
    gpu.modules.clear()
    gpu.shapes.clear()
    trainer = LocalTrainer(task.party_data(0, 1), task, table(microbatch=16), plan)
    update = trainer.update(model, 0)
    assert np.isfinite(update).all()
    assert trainer.not_finite == 0
    # Twenty records come in blocks of sixteen, the second one filled up.
    assert gpu.shapes == [(16, 64), (16,)] * 4
    assert len(gpu.modules) == 1
    assert model not in gpu.modules


def test_random_numbers_in_a_loss_pass_the_check_on_a_gpu(gpu: Sent) -> None:
    """Passes with the same random numbers are compared, which a secret seed would not give."""
    pytest.importorskip("opacus")
    task = SmallTask()
    task.loss = lambda outputs, targets: cross_entropy(dropout(outputs), targets)  # type: ignore[method-assign]  # a loss of its own
    check_record_gradients(initial_model(task, seed=0), task, table(gradients="opacus"))
    assert len(gpu.modules) == 1


def test_evaluation_sends_a_copy_and_the_test_inputs(gpu: Sent) -> None:
    task = SmallTask()
    model = initial_model(task, seed=0)
    assert evaluate(model, task, "cuda") == evaluate(model, task)
    assert gpu.shapes == [(20, 64)]
    assert len(gpu.modules) == 1
    assert model not in gpu.modules


def test_dropout_on_a_gpu_is_seeded_secretly_and_its_generator_put_back(
    gpu: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.cuda.default_generators[0]
    seen = []
    for _ in range(2):
        generator.manual_seed(0)
        before = generator.get_state()
        with secret_device_generator(CUDA):
            seen.append(torch.rand(4, generator=generator).tolist())
        assert torch.equal(generator.get_state(), before)
        with pytest.raises(RuntimeError, match="inside"), secret_device_generator(CUDA):
            raise RuntimeError("inside")
        assert torch.equal(generator.get_state(), before)
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("gradients", "microbatch"), [("vmap", 4), ("opacus", 4), ("opacus", 1)])
def test_every_way_to_a_row_seeds_the_gpu(
    gpu: Sent, gradients: str, microbatch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gradients == "opacus":
        pytest.importorskip("opacus")
    seeded: list[int] = []
    real = torch.Generator.manual_seed

    class Watched(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            seeded.append(seed)
            return real(self, seed)

    monkeypatch.setattr(torch.cuda, "default_generators", (Watched(),))
    task = SmallTask()
    training = table(gradients=gradients, microbatch=microbatch)
    all_rows(initial_model(task, seed=0), task, training)
    assert len(seeded) == len(set(seeded)) == -(-7 // microbatch)


def test_a_device_that_is_not_there_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = SmallTask()
    model = initial_model(task, seed=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = r'training\.device = "cuda", but .* no GPU here; set training\.device = "cpu"'
    for check in (check_record_gradients, check_local_update):
        with pytest.raises(ConfigError, match=words):
            check(model, task, table(device="cuda"))


def test_a_gpu_too_many_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cpu")
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(ConfigError, match=r'"cuda:2", but .* 2 GPUs here, "cuda:0" to "cuda:1"'):
        check_device("cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("gradients", ["vmap", "opacus"])
def test_a_gpu_finds_the_gradients_of_the_cpu(gradients: str) -> None:
    if gradients == "opacus":
        pytest.importorskip("opacus")
    task = SmallTask()
    model = initial_model(task, seed=0)
    model[0].p = 0.0
    cpu, cuda = (
        all_rows(model, task, table(gradients=gradients, device=device))
        for device in ("cpu", "cuda")
    )
    # Float32 gradients of order one, each of one product.
    np.testing.assert_allclose(cuda, cpu, rtol=0, atol=1e-5)
