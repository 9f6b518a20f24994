"""Runs per-record gradients over a sample in blocks, so that no record touches another's row.

The sensitivity of a sum of gradients rests on this: adding a record may add a row, and may change
no other one. Three ways in which a record could reach another's row are closed here.

* *A record that fails.* It becomes a row of NaN, which the clip turns into zero (an error would
  tell that it is there, and that it was sampled). The others are computed again in a block of
  the same shape, with a public record in its place: a shape of its own would be rounded otherwise.
* *The size of the last block.* Blocks are filled up with public records to a multiple of 16 rows.
* *Dropout.* Masks come from torch's generator and depend on a record's place in the block. It
  is seeded with secret bits for every block, so that masks are independent of everything.

What stays open: torch promises no equal rounding of a row beside other rows of the same shape. With
``microbatch = 1`` each record passes alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpcfl.dp.sampler import draw_generator_seed
from mpcfl.learn.task import Records

Matrix = NDArray[np.float64]
# From k inputs and targets to k rows; may raise.
Gradients = Callable[[Tensor, Tensor], Matrix]

_ROWS_MULTIPLE = 16
# Rows that are held at a time; each coordinate of one takes a float32 and a float64.
_BLOCK_BYTES = 1 << 26
_BYTES_PER_COORDINATE = 12
# Torch has one generator in a process; parties that are threads of one take turns with it.
_GENERATOR = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class RecordBlocks:
    """How rows are computed.

    Attributes:
        gradients: gives one row per record.
        stand_in: one public record.
        dim: length of a row.
        microbatch: most rows at a time; fewer where rows are long, down to one.
    """

    gradients: Gradients
    stand_in: Records
    dim: int
    microbatch: int

    def of_sample(self, records: Records, sample: NDArray[np.int64]) -> Iterator[Matrix]:
        """Yield the rows of the sampled records, in the order of ``sample``.

        Args:
            records: this party's inputs and targets. Secret.
            sample: indices of the sampled records, shape (sampled,), int64; may be empty.

        Yields:
            Blocks of shape (k, dim), float64, k <= microbatch. Secret.
        """
        most = rows_at_once(self.microbatch, self.dim)
        for start in range(0, len(sample), most):
            block = torch.tensor(sample[start : start + most])
            yield self._rows((records[0][block], records[1][block]))

    def _rows(self, chosen: Records) -> Matrix:
        """Return one row per chosen record; one of NaN for each that fails."""
        count = len(chosen[0])
        inputs, targets = self._filled_up(chosen)
        try:
            return self._masked(inputs, targets)[:count]
        except Exception:  # noqa: BLE001 - foreign code on private records: which one it was matters
            alone = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(count)]
        failing = np.array([not self._works(one) for one in alone])
        for values, public in zip((inputs, targets), self.stand_in, strict=True):
            values[:count][torch.tensor(failing)] = public[0]
        try:
            rows = self._masked(inputs, targets)[:count].copy()
        except Exception:  # noqa: BLE001 - they fail together only, so none can be told apart
            return np.full((count, self.dim), np.nan)
        rows[failing] = np.nan
        return rows

    def _filled_up(self, chosen: Records) -> Records:
        count = len(chosen[0])
        most = rows_at_once(self.microbatch, self.dim)
        extra = min(most, -(-count // _ROWS_MULTIPLE) * _ROWS_MULTIPLE) - count
        inputs, targets = (
            torch.cat([values, public.expand(extra, *public.shape[1:])])
            for values, public in zip(chosen, self.stand_in, strict=True)
        )
        return inputs, targets

    def _works(self, one: Records) -> bool:
        try:
            self._masked(*one)
        except Exception:  # noqa: BLE001 - see `_rows`
            return False
        return True

    def _masked(self, inputs: Tensor, targets: Tensor) -> Matrix:
        with _secret_generator():
            return self.gradients(inputs, targets)


def rows_at_once(microbatch: int, dim: int) -> int:
    """Return how many rows of a length are computed at a time, at most; depends on nothing else."""
    return max(1, min(microbatch, _BLOCK_BYTES // (_BYTES_PER_COORDINATE * max(1, dim))))


@contextmanager
def _secret_generator() -> Iterator[None]:
    """Seed torch's generator with secret bits, and put it back afterwards."""
    with _GENERATOR, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_generator_seed())
        yield
