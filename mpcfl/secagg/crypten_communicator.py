"""CrypTen's `Communicator` over a `Transport`: MPI between processes, memory between threads.

Tensors travel as their raw bytes. CrypTen also sends Python objects, which it pickles;
nothing is pickled here, so those calls are refused.

Protects nothing by itself: what CrypTen hands over (shares) leaves as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NoReturn

import numpy as np
import torch
from torch.distributed import ReduceOp

from mpcfl.errors import ProtocolError
from mpcfl.net.reduction import allreduce
from mpcfl.net.transport import Transport
from mpcfl.secagg.crypten_bridge import crypten

_Fold = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_FOLDS: dict[Any, _Fold] = {
    ReduceOp.SUM: torch.add,
    ReduceOp.BXOR: torch.bitwise_xor,
    ReduceOp.PRODUCT: torch.mul,
}


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
        self._transport.exchange({dst: _to_bytes(tensor)}, [])

    def recv(self, tensor: torch.Tensor, src: int) -> torch.Tensor:
        """Return the tensor from ``src``, shaped as ``tensor``."""
        return _from_bytes(self._transport.exchange({}, [src])[src], tensor)

    def isend(self, tensor: torch.Tensor, dst: int) -> _Request:
        """Send a tensor; it has left when this returns."""
        self.send(tensor, dst)
        return _Request()

    def irecv(self, tensor: torch.Tensor, src: int) -> _Request:
        """Receive into ``tensor`` once the request is waited for."""

        def finish() -> None:
            tensor.copy_(self.recv(tensor, src))

        return _Request(finish)

    def all_gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return every rank's tensor, in order of rank."""
        gathered = self._transport.allgather(_to_bytes(tensor))
        return [_from_bytes(message, tensor) for message in gathered]

    def gather(self, tensor: torch.Tensor, dst: int) -> Sequence[torch.Tensor | None]:
        """Return every rank's tensor at ``dst``; ``[None]`` elsewhere."""
        if self.get_rank() != dst:
            self.send(tensor, dst)
            return [None]
        received = self._transport.exchange({}, self._others())
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
            self._transport.exchange(messages, [])
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
                self._transport.exchange(dict.fromkeys(self._others(), message), [])
            else:
                one.copy_(self.recv(one, src))
        return tensor

    def all_reduce(self, tensor: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return the reduction of all ranks' tensors at every rank; inputs stay as they are."""
        if batched:
            return [self.all_reduce(one, op) for one in tensor]
        if op == ReduceOp.SUM and tensor.dtype == torch.int64:
            flat = tensor.detach().reshape(-1).numpy().view(np.uint64).copy()
            total = allreduce(self._transport, flat).view(np.int64)
            return torch.from_numpy(total).reshape(tensor.shape)
        return _fold(self.all_gather(tensor), op)

    def reduce(self, tensor: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Return the reduction at ``dst`` and None elsewhere; no other rank learns it."""
        if batched:
            results = [self.reduce(one, dst, op) for one in tensor]
            return results if self.get_rank() == dst else None
        gathered = [one for one in self.gather(tensor, dst) if one is not None]
        return _fold(gathered, op) if gathered else None

    def barrier(self) -> None:
        """Return once every rank has called this."""
        self._transport.allgather(b"")

    def send_obj(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: CrypTen would pickle the object."""
        raise ProtocolError("objects are not sent: CrypTen would pickle them")

    recv_obj = send_obj
    broadcast_obj = send_obj

    def _others(self) -> list[int]:
        return [rank for rank in range(self.get_world_size()) if rank != self.get_rank()]


def _to_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def _from_bytes(message: bytes, like: torch.Tensor) -> torch.Tensor:
    expected = like.numel() * like.element_size()
    if len(message) != expected:
        raise ProtocolError(f"a tensor of {len(message)} bytes came, {expected} were expected")
    if expected == 0:
        return like.clone()
    return torch.frombuffer(bytearray(message), dtype=like.dtype).reshape(like.shape)


def _fold(tensors: Sequence[torch.Tensor], op: Any) -> torch.Tensor:
    if op not in _FOLDS:
        raise ProtocolError(f"reduction {op} is not offered; use SUM, PRODUCT or BXOR")
    return reduce(_FOLDS[op], tensors)
