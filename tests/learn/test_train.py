from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mpcfl.config import TrainingTable
from mpcfl.errors import ConfigError
from mpcfl.learn.model import flat_parameters, initial_model, model_digest
from mpcfl.learn.task import Records
from mpcfl.learn.train import (
    check_local_update,
    check_record_gradients,
    local_update,
    local_update_or_nan,
    record_gradients,
)

RECORDS, CLASSES = 11, 3
FLOAT32_EPSILON = float(np.finfo(np.float32).eps)


def at_once(microbatch: int) -> TrainingTable:
    return TrainingTable(rounds=1, microbatch=microbatch)


class ModelTask:
    """Any model on made-up data; inputs are floats, or token numbers for embeddings."""

    def __init__(self, build: Callable[[], nn.Module], shape: tuple[int, ...], tokens: int = 0):
        generator = torch.Generator().manual_seed(1)
        self.build = build
        size = (RECORDS, *shape)
        self.inputs = (
            torch.randint(tokens, size, generator=generator)
            if tokens
            else torch.randn(size, generator=generator)
        )
        self.targets = torch.randint(CLASSES, (RECORDS,), generator=generator)

    def model(self) -> nn.Module:
        return self.build()

    def party_data(self, party: int, n_parties: int) -> Records:
        return self.inputs, self.targets

    def test_data(self) -> Records:
        return self.inputs, self.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)


def linear() -> nn.Module:
    return nn.Linear(4, CLASSES)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, CLASSES))


def partly_frozen() -> nn.Module:
    model = mlp()
    model.get_submodule("0").requires_grad_(requires_grad=False)
    return model


TASKS = {
    "linear": ModelTask(linear, (4,)),
    "mlp": ModelTask(mlp, (4,)),
    "convolution": ModelTask(convolution, (1, 4, 4)),
    "embedding": ModelTask(embedding, (2,), tokens=7),
    "partly-frozen": ModelTask(partly_frozen, (4,)),
}
SAMPLE = np.array([7, 0, 3, 10, 4], dtype=np.int64)


@pytest.fixture(params=list(TASKS))
def task(request: pytest.FixtureRequest) -> ModelTask:
    return TASKS[request.param]


def gradients_by_loop(model: nn.Module, task: ModelTask, sample: np.ndarray) -> np.ndarray:
    """One backward pass per record, with plain autograd."""
    rows = []
    parameters = [p for p in model.parameters() if p.requires_grad]
    for index in sample:
        loss = task.loss(model(task.inputs[index][None]), task.targets[index][None])
        parts = torch.autograd.grad(loss, parameters)
        rows.append(-torch.cat([part.reshape(-1) for part in parts]).double().numpy())
    return np.array(rows)


def all_blocks(model: nn.Module, task: ModelTask, microbatch: int) -> np.ndarray:
    data = task.party_data(0, 1)
    return np.concatenate(list(record_gradients(model, data, task, SAMPLE, at_once(microbatch))))


def test_record_gradients_equal_a_loop_of_autograd(task: ModelTask) -> None:
    model = initial_model(task, seed=2)
    expected = gradients_by_loop(model, task, SAMPLE)
    # Both ways compute in float32 and sum at most about 100 terms of like size per value.
    tolerance = 100 * FLOAT32_EPSILON * max(1.0, np.abs(expected).max())
    actual = all_blocks(model, task, microbatch=256)
    assert actual.dtype == np.float64
    assert actual.shape == (len(SAMPLE), flat_parameters(model).size)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("microbatch", [1, 2, 4, 5])
def test_microbatch_size_changes_only_the_blocks(task: ModelTask, microbatch: int) -> None:
    model = initial_model(task, seed=2)
    data = task.party_data(0, 1)
    blocks = list(record_gradients(model, data, task, SAMPLE, at_once(microbatch)))
    assert max(len(block) for block in blocks) <= microbatch
    expected = all_blocks(model, task, microbatch=256)
    tolerance = 100 * FLOAT32_EPSILON * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(
        sum(block.sum(axis=0) for block in blocks),
        expected.sum(axis=0),
        rtol=0,
        atol=len(SAMPLE) * tolerance,
    )


def test_record_gradients_leave_the_model_unchanged(task: ModelTask) -> None:
    model = initial_model(task, seed=2)
    before = model_digest(model)
    all_blocks(model, task, microbatch=2)
    assert model_digest(model) == before
    assert all(p.grad is None for p in model.parameters())


def test_empty_sample_yields_nothing(task: ModelTask) -> None:
    model = initial_model(task, seed=2)
    empty = np.array([], dtype=np.int64)
    assert list(record_gradients(model, task.party_data(0, 1), task, empty, at_once(4))) == []


def test_record_that_is_not_finite_spoils_its_own_row_only() -> None:
    task = ModelTask(linear, (4,))
    task.inputs[3] = float("nan")
    rows = all_blocks(initial_model(task, seed=2), task, microbatch=256)
    assert list(np.isfinite(rows).all(axis=1)) == [True, True, False, True, True]


class BranchesOnValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs)
        return outputs if inputs.sum().item() > 0 else -outputs


@pytest.mark.parametrize("microbatch", [2, 256])
def test_record_on_which_the_loss_fails_counts_as_not_finite_and_stops_nothing(
    microbatch: int,
) -> None:
    good, bad = ModelTask(linear, (4,)), ModelTask(linear, (4,))
    bad.targets[3] = 99  # no such class: cross entropy refuses it
    model = initial_model(good, seed=2)
    rows = all_blocks(model, bad, microbatch)
    spoilt = np.flatnonzero(SAMPLE == 3)
    assert np.isnan(rows[spoilt]).all()
    kept = np.delete(rows, spoilt, axis=0)
    expected = np.delete(gradients_by_loop(model, good, SAMPLE), spoilt, axis=0)
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-6)  # float32 gradients below 1


def test_party_on_whose_records_training_fails_counts_as_not_finite() -> None:
    task = ModelTask(linear, (4,))
    task.targets[0] = 99
    model = initial_model(task, seed=2)
    update = local_update_or_nan(model, task.party_data(0, 1), task, TRAINING, 0)
    assert update.shape == (1, flat_parameters(model).size)
    assert np.isnan(update).all()
    with pytest.raises(IndexError):
        local_update(model, task.party_data(0, 1), task, TRAINING, 0)


def test_model_that_cannot_be_vectorized_is_refused_with_a_remedy() -> None:
    task = ModelTask(BranchesOnValues, (4,))
    with pytest.raises(ConfigError, match=r"torch\.func\.vmap supports"):
        check_record_gradients(task.model(), task)


def test_loss_that_fails_on_public_records_is_refused_before_training() -> None:
    task = ModelTask(linear, (4,))
    task.targets[0] = 99
    with pytest.raises(ConfigError, match=r"fails on its own test records: .*99"):
        check_local_update(initial_model(task, seed=2), task, TRAINING)


def test_check_on_public_records_tells_torchs_reason() -> None:
    task = ModelTask(BranchesOnValues, (4,))
    with pytest.raises(ConfigError, match=r"torch says: .*\.item\(\)"):
        check_record_gradients(task.model(), task)


def test_dropout_differs_from_record_to_record() -> None:
    task = ModelTask(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES)), (64,))
    task.inputs[:] = 1.0
    weights = all_blocks(initial_model(task, seed=2), task, microbatch=256)[:, : 64 * CLASSES]
    assert len({(row != 0).tobytes() for row in weights}) == len(SAMPLE)


TRAINING = TrainingTable(rounds=9, local_steps=3, batch_size=4, learning_rate=0.05)


def descend_by_hand(model: nn.Module, task: ModelTask, batches: list[list[int]]) -> np.ndarray:
    parameters = [p for p in model.parameters() if p.requires_grad]
    for batch in batches:
        loss = task.loss(model(task.inputs[batch]), task.targets[batch])
        with torch.no_grad():
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(loss, parameters), strict=True
            ):
                parameter -= TRAINING.learning_rate * gradient
    return flat_parameters(model)


def test_local_update_equals_descent_by_hand(task: ModelTask) -> None:
    model = initial_model(task, seed=2)
    update = local_update(model, task.party_data(0, 1), task, TRAINING, round_id=1)
    # Round 0 took records 0-10 and 0; round 1 goes on from there.
    batches = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 1]]
    expected = descend_by_hand(initial_model(task, seed=2), task, batches) - flat_parameters(model)
    # The same operations in the same order, but torch may fuse a multiplication and an addition.
    tolerance = 10 * FLOAT32_EPSILON * np.abs(flat_parameters(model)).max()
    assert update.shape == (1, flat_parameters(model).size)
    assert update.dtype == np.float64
    np.testing.assert_allclose(update[0], expected, rtol=0, atol=tolerance)


def test_local_update_leaves_the_model_unchanged_and_is_repeatable(task: ModelTask) -> None:
    model = initial_model(task, seed=2)
    before = model_digest(model)
    updates = [local_update(model, task.party_data(0, 1), task, TRAINING, 4) for _ in range(2)]
    assert np.array_equal(updates[0], updates[1])
    assert model_digest(model) == before


def test_batch_larger_than_the_data_takes_every_record_once() -> None:
    task = TASKS["linear"]
    model = initial_model(task, seed=2)
    large, exact = (
        TrainingTable(rounds=1, batch_size=size, learning_rate=0.05) for size in (1000, RECORDS)
    )
    updates = [local_update(model, task.party_data(0, 1), task, t, 0) for t in (large, exact)]
    assert np.array_equal(updates[0], updates[1])
