"""Noise that is drawn while the party trains: for the attempt that is under way, and for no other.

The plan of a round is known when the round begins, and its noise depends on nothing else, least of
all on the data. So it can be drawn beside the training, and adding it is all that is left to do.
A `ShareAhead` lives as long as one attempt: an attempt that fails takes its noise along, and the
next one, which may have another plan, draws anew. It holds one vector at most. It protects no
more than `noise.py` does: who reads this process' memory reads the noise, now a little longer.

Injected bits are read in the order of the stages, as tests and the in-process oracle expect, so
nothing is drawn ahead from them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.noise import NoiseShare
from mpcfl.dp.noise_plan import NoisePlan
from mpcfl.errors import OutOfOrder
from mpcfl.hazmat.bits import BitSource, SystemBits

# `draw_noise_share`, or what stands for it.
DrawShare = Callable[[NoisePlan, BitSource | None], NoiseShare]
# Shorter shares are drawn in a few milliseconds, which is not worth a thread.
_LEAST_COORDINATES = 1 << 16


class ShareAhead:
    """The noise share of one attempt, drawn from the start of a ``with`` block on. Secret.

    Args:
        draw: makes the share, once.
        plan: of the round.
        bits: injected by tests and the in-process oracle only; None means the operating system.
        ahead: whether to draw in a thread of its own; else `take` draws.
    """

    def __init__(
        self, draw: DrawShare, plan: NoisePlan, bits: BitSource | None = None, *, ahead: bool
    ) -> None:
        self._draw = draw
        self._plan = plan
        self._bits = bits
        worth_it = plan.local_sigma > 0 and plan.vector_dim >= _LEAST_COORDINATES
        self._ahead = ahead and bits is None and worth_it
        self._stop = threading.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._drawn: Future[NoiseShare] | None = None
        self._taken = False
        self._process_id = os.getpid()

    def take(self) -> NoiseShare:
        """Hand over the share, as soon as it is there.

        Raises:
            OutOfOrder: it was taken before, its attempt is over, or this is another process.
            Exception: whatever the drawing raised.
        """
        taken, self._taken = self._taken, True
        # In a child process nobody draws any more, so it must not wait.
        if taken or os.getpid() != self._process_id:
            raise OutOfOrder("a noise share was used twice; draw a new share for every attempt")
        drawn, self._drawn = self._drawn, None
        return self._draw(self._plan, self._bits) if drawn is None else drawn.result()

    def __enter__(self) -> ShareAhead:
        if self._ahead:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="noise")
            bits = _UntilStopped(self._stop)
            self._drawn = self._executor.submit(self._draw, self._plan, bits)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What nobody took belongs to an attempt that failed.
        self._taken, self._drawn = True, None
        self._stop.set()
        executor, self._executor = self._executor, None
        if executor is not None and os.getpid() == self._process_id:
            executor.shutdown(wait=True, cancel_futures=True)

    def __repr__(self) -> str:
        return "ShareAhead(<redacted>)"

    def __reduce__(self) -> Any:
        raise TypeError("a noise share must not be copied or leave its process")


class _UntilStopped(SystemBits):
    """Bits of the operating system's that end once nobody waits for the noise."""

    __slots__ = ("_stop",)

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def words(self, count: int) -> NDArray[np.uint64]:
        """See `BitSource.words`.

        Raises:
            OutOfOrder: the attempt is over.
        """
        if self._stop.is_set():
            raise OutOfOrder("the attempt that this noise was for is over")
        return super().words(count)
