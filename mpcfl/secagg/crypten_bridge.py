"""CrypTen 0.4.1 under today's torch, with one communicator and one set of generators per thread.

CrypTen keeps its communicator and its generators in module globals: one party per process.
Here both become views of what the calling thread has put in force by `speaking_through`, so
that all parties of `run_round()` fit into one process, and `crypten` and `crypten-stock`
into one party. Where nothing is in force, CrypTen behaves as shipped.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# CrypTen imports this module under the name that it had before torch 2.9.
_OLD_NAME = "torch.onnx._internal.registration"
_NEW_NAME = "torch.onnx._internal.torchscript_exporter.registration"


def _mend_torch_name() -> None:
    if importlib.util.find_spec(_OLD_NAME) is None:
        sys.modules[_OLD_NAME] = importlib.import_module(_NEW_NAME)


_mend_torch_name()

import crypten as crypten  # noqa: E402 - only works after the mend above
import crypten.communicator  # noqa: E402 - as above

# Generators by name ("prev", "next", "local", "global"), each by torch device.
Generators = Mapping[str, dict[Any, Any]]
GENERATOR_NAMES = ("prev", "next", "local", "global")

_install_lock = threading.Lock()
_in_force = threading.local()


class _ThreadCommunicator:
    """Stands for CrypTen's `DistributedCommunicator` class; asks the calling thread first."""

    shipped: Any = crypten.communicator.DistributedCommunicator

    @classmethod
    def is_initialized(cls) -> bool:
        return _communicator() is not None or bool(cls.shipped.is_initialized())

    @classmethod
    def get(cls) -> Any:
        found = _communicator()
        return cls.shipped.get() if found is None else found

    @classmethod
    def initialize(cls, rank: int, world_size: int, init_ttp: bool = False) -> None:
        cls.shipped.initialize(rank, world_size, init_ttp=init_ttp)

    @classmethod
    def shutdown(cls) -> None:
        cls.shipped.shutdown()


class _ThreadGenerators(Mapping[str, dict[Any, Any]]):
    """Stands for CrypTen's dictionary of generators; asks the calling thread first."""

    shipped: Generators = crypten.generators

    def __getitem__(self, name: str) -> dict[Any, Any]:
        return self._current()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())

    def _current(self) -> Generators:
        found: Generators | None = getattr(_in_force, "generators", None)
        return self.shipped if found is None else found


def _communicator() -> Any:
    return getattr(_in_force, "communicator", None)


def install() -> None:
    """Put the per-thread views into CrypTen, once per process."""
    with _install_lock:
        if crypten.communicator.DistributedCommunicator is not _ThreadCommunicator:
            crypten.communicator.DistributedCommunicator = _ThreadCommunicator
            crypten.generators = _ThreadGenerators()


def fresh_generators() -> Generators:
    """Return a set of generators without seeds, for one party."""
    return {name: {} for name in GENERATOR_NAMES}


@contextmanager
def speaking_through(communicator: Any, generators: Generators) -> Iterator[None]:
    """Run CrypTen in this thread with a communicator and generators of its own."""
    install()
    before = (_communicator(), getattr(_in_force, "generators", None))
    _in_force.communicator, _in_force.generators = communicator, generators
    try:
        yield
    finally:
        _in_force.communicator, _in_force.generators = before
