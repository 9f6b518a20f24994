"""The masks of one rank's session of sums: in order, each once, made when needed or ahead.

What `ring_sum.py` and `crypten_sum.py` have in common. A session ends with `close`, or when an
exchange breaks off: other ranks may then be at another sum, and what they sent would be taken for
a part of the next one, so that everything more is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from mpcfl.errors import OutOfOrder
from mpcfl.net.codec import Words
from mpcfl.net.reduction import Chunks
from mpcfl.net.transport import Transport
from mpcfl.secagg.base import FIRST_SUM, Levels, SumId, SumSettings, next_sum
from mpcfl.secagg.masks import MaskedSource, MaskPreparation, PairMasks, WordType


class MaskSession:
    """What a session of masked sums keeps from sum to sum. Secret.

    Args:
        transport: joins the ranks.
        settings: of the session.
        pairs: the masks that this rank shares with its peers.
        dtype: of the words under masks.

    Attributes:
        pairs: as above.
        chunks: how vectors are cut.
    """

    def __init__(
        self, transport: Transport, settings: SumSettings, pairs: PairMasks, dtype: WordType
    ) -> None:
        self.pairs = pairs
        self.chunks = Chunks.of(settings.dim, transport.n_ranks, dtype.itemsize)
        self._dtype = dtype
        self._last: SumId | None = None
        self._refusal: str | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._preparation: MaskPreparation | None = None
        if settings.precompute or len(self.chunks) > 1:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="masks")
            if settings.precompute:
                self._preparation = MaskPreparation(pairs, self.chunks, self._executor)
                self._preparation.start(FIRST_SUM, dtype)

    @property
    def executor(self) -> Executor | None:
        """A thread for making masks beside an exchange; None where there is nothing to overlap."""
        return self._executor

    def check_open(self) -> None:
        """Refuse to go on once the session has ended.

        Raises:
            OutOfOrder: it was closed, or an exchange broke off.
        """
        if self._refusal is not None:
            raise OutOfOrder(f"{self._refusal}; open a new session")

    def expected(self, sum_id: SumId | None) -> SumId:
        """Return which sum would come next; see `base.next_sum`."""
        return next_sum(self._last, sum_id)

    def begin(self, levels: Levels, sum_id: SumId | None) -> tuple[MaskedSource, Words | None]:
        """Return a vector under the masks of a sum, and these masks where they were made ahead.

        Raises:
            OutOfOrder: the session has ended, or ``sum_id`` is not later than the last one.
        """
        self.check_open()
        self._last = self.expected(sum_id)
        prepared = None if self._preparation is None else self._preparation.take(self._last)
        return MaskedSource(levels, self._last, self.pairs, self.chunks, prepared), prepared

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """End the session if the block, in which ranks talk to each other, doesn't come through.

        Raises:
            OutOfOrder: the session has ended before.
        """
        self.check_open()
        self._refusal = "a sum broke off in this session"
        yield
        self._refusal = None

    def prepare_next(self) -> None:
        """Begin to make the masks of the sum after the last one, if they are to be made ahead."""
        if self._preparation is not None and self._last is not None:
            self._preparation.start(self._last.expected_next, self._dtype)

    def prepare(self) -> None:
        """Return once the masks that are made ahead are ready."""
        if self._preparation is not None:
            self._preparation.wait()

    def close(self) -> None:
        """Forget all keys and masks; may be called twice."""
        self._refusal = "this session was closed"
        if self._preparation is not None:
            self._preparation.drop()
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
        self.pairs.forget()
