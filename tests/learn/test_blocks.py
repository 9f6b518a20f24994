"""A record never reaches another's row: not by failing, not by its block, not by dropout."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mpcfl.config import TrainingTable
from mpcfl.learn.blocks import RecordBlocks, rows_at_once
from mpcfl.learn.task import Records
from mpcfl.learn.train import record_gradients

DIM = 6
BAD = 9

EIGHT = TrainingTable(rounds=1, microbatch=8)


class Watched:
    """Rows that depend, on purpose, on the shape of the block; records with target 9 fail."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, inputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
        self.sizes.append(len(inputs))
        if (targets == BAD).any():
            raise RuntimeError("no such class")
        return (inputs * len(inputs)).double().numpy()


def records(targets: list[int]) -> Records:
    n = len(targets)
    return torch.arange(n * DIM, dtype=torch.float32).reshape(n, DIM) + 1, torch.tensor(targets)


def blocks(gradients: Watched, microbatch: int = 32) -> RecordBlocks:
    return RecordBlocks(gradients, (torch.zeros(1, DIM), torch.tensor([0])), DIM, microbatch)


def rows_of(targets: list[int], microbatch: int = 32) -> NDArray[np.float64]:
    everything = np.arange(len(targets))
    found = list(blocks(Watched(), microbatch).of_sample(records(targets), everything))
    return np.concatenate(found) if found else np.empty((0, DIM))


def test_an_empty_sample_yields_nothing() -> None:
    assert rows_of([]).shape == (0, DIM)


@pytest.mark.parametrize("bad", [0, 3, 19])
def test_a_failing_record_is_nan_and_changes_no_other_row(bad: int) -> None:
    targets = [1] * 20
    healthy = rows_of(targets)
    targets[bad] = BAD
    rows = rows_of(targets)
    assert np.isnan(rows[bad]).all()
    others = np.arange(20) != bad
    np.testing.assert_array_equal(rows[others], healthy[others])


def test_when_all_fail_all_rows_are_nan() -> None:
    assert np.isnan(rows_of([BAD] * 5)).all()


def test_records_that_fail_only_together_are_all_left_out() -> None:
    def never_two(inputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
        if len(inputs) > 1:
            raise RuntimeError("too many")
        return inputs.double().numpy()

    found = RecordBlocks(never_two, (torch.zeros(1, DIM), torch.tensor([0])), DIM, 32)
    rows = next(found.of_sample(records([1, 1]), np.arange(2)))
    assert np.isnan(rows).all()


@pytest.mark.parametrize(("count", "sizes"), [(1, [16]), (16, [16]), (17, [32]), (33, [32, 16])])
def test_blocks_are_filled_up_to_sixteen(count: int, sizes: list[int]) -> None:
    watched = Watched()
    found = blocks(watched).of_sample(records([1] * count), np.arange(count))
    assert sum(len(rows) for rows in found) == count
    assert watched.sizes == sizes


def test_with_a_microbatch_of_one_each_record_passes_alone() -> None:
    watched = Watched()
    list(blocks(watched, microbatch=1).of_sample(records([1] * 5), np.arange(5)))
    assert watched.sizes == [1] * 5


class DropoutTask:
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 2))

    def party_data(self, party: int, n_parties: int) -> Records:
        return torch.ones(4, 64), torch.zeros(4, dtype=torch.int64)

    def test_data(self) -> Records:
        return self.party_data(0, 1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


def test_dropout_masks_are_secret_whoever_seeded_the_generator() -> None:
    task = DropoutTask()
    model = task.model().train()
    seen = []
    for _ in range(2):
        # What a task could do in its own code; the guarantee must not care.
        torch.manual_seed(0)  # noqa: TID251  the fault that is tested
        before = torch.get_rng_state()
        seen.append(next(record_gradients(model, task.test_data(), task, np.arange(4), EIGHT)))
        assert torch.equal(torch.get_rng_state(), before)
    # 4 masks of 64 bits are equal by chance once in 2^256.
    assert not np.array_equal(*seen)


def test_parties_that_are_threads_take_turns_with_the_one_generator() -> None:
    inside: list[int] = []

    def alone(inputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
        inside.append(1)
        assert len(inside) == 1
        time.sleep(0.001)
        drawn = torch.rand(len(inputs), DIM).double().numpy()
        inside.pop()
        return drawn

    def party(_: int) -> bytes:
        found = RecordBlocks(alone, (torch.zeros(1, DIM), torch.tensor([0])), DIM, 1)
        rows = found.of_sample(records([1] * 20), np.arange(20))
        return np.concatenate(list(rows)).tobytes()

    before = torch.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(party, range(8), timeout=60))
    assert len(set(drawn)) == 8
    assert torch.equal(torch.get_rng_state(), before)


def test_long_rows_are_computed_a_few_at_a_time_whatever_the_microbatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpcfl.learn.blocks._BLOCK_BYTES", 3 * 12 * DIM)
    watched = Watched()
    found = list(blocks(watched).of_sample(records([1] * 7), np.arange(7)))
    # The last block has as many rows as all others, which a public record fills up.
    assert watched.sizes == [3, 3, 3]
    assert [len(rows) for rows in found] == [3, 3, 1]


def test_a_row_longer_than_a_block_passes_alone_and_is_not_filled_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpcfl.learn.blocks._BLOCK_BYTES", 12 * DIM - 1)
    watched = Watched()
    list(blocks(watched).of_sample(records([1] * 3), np.arange(3)))
    assert watched.sizes == [1, 1, 1]


def test_rows_of_small_models_are_as_many_as_the_job_says() -> None:
    assert rows_at_once(256, 7850) == 256
    # A BERT of 6 layers: one row of it is longer than a block.
    assert rows_at_once(256, 22_713_986) == 1
