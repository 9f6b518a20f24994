"""CrypTen's `Communicator` over a `Transport`: MPI between processes, memory between threads.

Tensors travel as their raw bytes. CrypTen also sends Python objects, which it pickles;
nothing is pickled here, so those calls are refused.

A reduction of a long tensor goes in chunks (`net/reduction.py`), each cut into one slice per
rank, so that it needs few bytes and little memory; a short one, of which a comparison has
many, goes to all at once, since there each round costs more than its bytes.

Protects nothing by itself: what CrypTen hands over (shares) leaves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed import ReduceOp

from mpcfl.errors import ProtocolError
from mpcfl.net.codec import WordCodec, Words
from mpcfl.net.reduction import Chunks, Reduction
from mpcfl.net.transport import Transport
from mpcfl.secagg.crypten_bridge import crypten

_FOLDS: dict[Any, np.ufunc] = {
    ReduceOp.SUM: np.add,
    ReduceOp.BXOR: np.bitwise_xor,
    ReduceOp.PRODUCT: np.multiply,
}
# Up to this length a tensor goes to all at once: one round instead of two.
_SHORT_BYTES = 1 << 15
# A reduction at one rank takes its tensor in pieces of this length from each other one.
_PIECE_BYTES = 1 << 22
_WORD_BITS = 64


class _Request:
    """A message under way; `wait` ends it."""

    def __init__(self, finish: Callable[[], None] | None = None) -> None:
        self._finish = finish

    def wait(self) -> None:
        if self._finish is not None:
            self._finish()
            self._finish = None


class TransportCommunicator(crypten.communicator.Communicator):  # type: ignore[misc]  # untyped
    """One rank's communicator; argument order and return values are those of CrypTen's own."""

    BYTES_PER_ELEMENT = 8

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._name = f"rank{transport.rank}"
        self._waiting: dict[int, bytes] = {}
        self.is_closed = False
        self.reset_communication_stats()

    def get_world_size(self) -> int:
        """Return the number of ranks."""
        return self._transport.n_ranks

    def get_rank(self) -> int:
        """Return this rank."""
        return self._transport.rank

    def get_name(self) -> str:
        """Return the party name that CrypTen gave this rank."""
        return self._name

    def set_name(self, name: str) -> None:
        """Set the party name."""
        self._name = name

    def send(self, tensor: torch.Tensor, dst: int) -> None:
        """Send a tensor to ``dst``."""
        self.flush()
        self._exchange({dst: _to_bytes(tensor)}, [])

    def recv(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        """Return the tensor from ``src``, shaped as ``tensor``."""
        return _from_bytes(self._exchange({}, [src])[src], tensor)

    def isend(self, tensor: torch.Tensor, dst: int) -> _Request:
        """Send a copy of a tensor; it leaves with the next call that waits for something.

        So ranks may all send before any of them receives. A second message to ``dst`` lets the
        first one leave at once.
        """
        if dst in self._waiting:
            self.flush()
        self._waiting[dst] = _to_bytes(tensor)
        return _Request()

    def irecv(self, tensor: torch.Tensor, src: int) -> _Request:
        """Receive into ``tensor`` once the request is waited for."""

        def finish() -> None:
            tensor.copy_(self.recv(tensor, src))

        return _Request(finish)

    def flush(self) -> None:
        """Return once all that `isend` took has left."""
        if self._waiting:
            self._exchange({}, [])

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's tensor, in order of rank."""
        self.flush()
        gathered = self._transport.allgather(_to_bytes(tensor))
        return [_from_bytes(message, tensor) for message in gathered]

    def gather(self, tensor: torch.Tensor, dst: int) -> Sequence[torch.Tensor | None]:
        """Return every rank's tensor at ``dst``; ``[None]`` elsewhere."""
        if self.get_rank() != dst:
            self.send(tensor, dst)
            return [None]
        received = self._exchange({}, self._others())
        received[dst] = _to_bytes(tensor)
        return [_from_bytes(received[rank], tensor) for rank in range(self.get_world_size())]

    def scatter(
        self,
        scatter_list: Sequence[torch.Tensor],
        src: int,
        size: Any = None,
        device: Any = None,  # noqa: ARG002 - CrypTen's signature; there is only the CPU here
    ) -> torch.Tensor:
        """Return this rank's tensor of the list that ``src`` holds."""
        if self.get_rank() == src:
            messages = {rank: _to_bytes(scatter_list[rank]) for rank in self._others()}
            self.flush()
            self._exchange(messages, [])
            return scatter_list[src]
        shape = scatter_list[self.get_rank()].size() if size is None else size
        return self.recv(torch.empty(shape, dtype=torch.long), src)

    def broadcast(
        self,
        tensor: Any,
        src: int,
        group: Any = None,  # noqa: ARG002 - CrypTen's signature; there is one group here
        batched: bool = False,
    ) -> Any:
        """Overwrite ``tensor`` (or each of a list) with that of ``src``, and return it."""
        for one in tensor if batched else [tensor]:
            if self.get_rank() == src:
                message = _to_bytes(one)
                self.flush()
                self._exchange(dict.fromkeys(self._others(), message), [])
            else:
                one.copy_(self.recv(one, src))
        return tensor

    def all_reduce(self, tensor: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return the reduction of all ranks' tensors at every rank; inputs stay as they are."""
        if batched:
            if not _is_joinable(tensor):
                return [self.all_reduce(one, op) for one in tensor]
            # CrypTen opens two values per multiplication; together they take one round.
            return _split(self._fold_everywhere(_joined(tensor), op), tensor)
        return self._fold_everywhere(tensor.detach().reshape(-1), op).reshape(tensor.shape)

    def reduce(self, tensor: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return the reduction at ``dst`` and None elsewhere; no other rank learns it."""
        if batched:
            results = [self.reduce(one, dst, op) for one in tensor]
            return results if self.get_rank() == dst else None
        fold, flat = _fold_of(op), tensor.detach().reshape(-1)
        length = _PIECE_BYTES // flat.element_size()
        # A tensor without values still is one (empty) message.
        pieces = (flat[i : i + length] for i in range(0, max(1, flat.numel()), length))
        folded = [_folded(self.gather(piece, dst), fold) for piece in pieces]
        return torch.cat(folded).reshape(tensor.shape) if self.get_rank() == dst else None

    def reduction(self, chunks: Chunks) -> Reduction:
        """Return a reduction of vectors mod 2^64; what waits to be sent leaves before.

        Args:
            chunks: how vectors are cut; equal at all ranks.
        """
        self.flush()
        return Reduction(self._transport, WordCodec(_WORD_BITS), chunks)

    def barrier(self) -> None:
        """Return once every rank has called this."""
        self.flush()
        self._transport.allgather(b"")

    def close(self) -> None:
        """Note that the session is over; nothing computes over it from then on."""
        self.is_closed = True

    def send_obj(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: CrypTen would pickle the object."""
        raise ProtocolError("objects are not sent: CrypTen would pickle them")

    recv_obj = send_obj
    broadcast_obj = send_obj

    def _exchange(self, outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        """Exchange messages, and let those leave that wait for it."""
        waiting, self._waiting = self._waiting, {}
        return self._transport.exchange({**waiting, **outgoing}, sources)

    def _fold_everywhere(self, flat: torch.Tensor, op: Any) -> torch.Tensor:
        """Return the reduction of all ranks' vectors, in a vector of its own."""
        fold = _fold_of(op)
        values = flat.contiguous().numpy()
        if self._transport.n_ranks == 1:
            return flat.clone()
        chunks = Chunks.of(values.size, self._transport.n_ranks, values.itemsize)
        if fold is np.add and values.dtype == np.int64:
            total = _Total(np.empty(values.size, dtype=np.uint64))
            self.reduction(chunks).run(WordsSource(values.view(np.uint64), chunks), total)
            return torch.from_numpy(total.words.view(np.int64))
        if values.nbytes <= _SHORT_BYTES:
            return _folded(self.all_gather(flat), fold)
        self.flush()
        folded = np.empty_like(values)
        for number in range(len(chunks)):
            where = chunks.chunk(number)
            self._fold_chunk(values[where], folded[where], chunks.slices(number), fold)
        return torch.from_numpy(folded)

    def _fold_chunk(self, values: Words, out: Words, slices: list[slice], fold: np.ufunc) -> None:
        """Write the reduction of one chunk into ``out``: every rank folds a slice for all."""
        own = slices[self.get_rank()]
        blocks = [values[part].view(np.uint8) for part in slices]
        inbox = {r: np.empty(values[own].nbytes, dtype=np.uint8) for r in self._others()}
        self._transport.begin_scatter(blocks, inbox).wait()
        total = out[own]
        total[:] = values[own]
        for block in inbox.values():
            fold(total, block.view(out.dtype), out=total)
        landings = {r: out[slices[r]].view(np.uint8) for r in self._others()}
        self._transport.begin_gather(total.view(np.uint8), landings).wait()

    def _others(self) -> list[int]:
        return [rank for rank in range(self.get_world_size()) if rank != self.get_rank()]


class WordsSource:
    """Puts a vector into a reduction, chunk by chunk; a `Source` of `net/reduction.py`.

    Args:
        words: stay as they are, shape (dim,).
        chunks: how they are cut.
    """

    def __init__(self, words: NDArray[np.uint64], chunks: Chunks) -> None:
        self._words, self._chunks = words, chunks

    def __call__(self, number: int, out: Words) -> None:
        """See `Source`."""
        out[:] = self._words[self._chunks.chunk(number)]


class _Total:
    """Takes a sum into one vector; a `Sink` of `net/reduction.py`."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def landing(self, where: slice) -> Words:
        return self.words[where]

    def finish(self, where: slice, total: Words) -> None:
        """There is nothing left to do."""


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _from_bytes(message: bytes, like: torch.Tensor) -> torch.Tensor:
    expected = like.numel() * like.element_size()
    if len(message) != expected:
        raise ProtocolError(f"a tensor of {len(message)} bytes came, {expected} were expected")
    if expected == 0:
        return like.clone()
    return torch.frombuffer(bytearray(message), dtype=like.dtype).reshape(like.shape)


def _fold_of(op: Any) -> np.ufunc:
    if op not in _FOLDS:
        raise ProtocolError(f"reduction {op} is not offered; use SUM, PRODUCT or BXOR")
    return _FOLDS[op]


def _folded(tensors: Sequence[torch.Tensor | None], fold: np.ufunc) -> torch.Tensor:
    """Return the reduction of tensors of one shape; empty where there are none."""
    present = [tensor.numpy() for tensor in tensors if tensor is not None]
    return torch.from_numpy(reduce(fold, present)) if present else torch.empty(0)


def _is_joinable(tensors: Sequence[torch.Tensor]) -> bool:
    return len({tensor.dtype for tensor in tensors}) == 1


def _joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the values of several tensors of one type in one vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _split(joined: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Undo `_joined`."""
    ends = np.cumsum([tensor.numel() for tensor in like])
    parts = (joined[end - one.numel() : end] for end, one in zip(ends, like, strict=True))
    return [part.reshape(one.shape) for part, one in zip(parts, like, strict=True)]
