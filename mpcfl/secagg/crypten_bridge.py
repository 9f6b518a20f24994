"""CrypTen 0.4.1 under today's torch, with one communicator and one set of generators per thread.

CrypTen keeps its communicator and its generators in module globals: one party per process.
Here both become views of what the calling thread has put in force by `speaking_through`, so
that all parties of `run_round()` fit into one process, and `crypten` and `crypten-stock`
into one party. Where nothing is in force, CrypTen behaves as shipped.

Generators in force may be keystreams (`crypten_streams.py`) rather than torch's; CrypTen's two
functions that draw from generators then read these.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mpcfl.secagg.crypten_streams import WordStreams

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
# Modules of CrypTen that hold the two functions below by name.
_DRAWING_MODULES = (
    "crypten.mpc.primitives.arithmetic",
    "crypten.mpc.primitives.binary",
    "crypten.mpc.provider.tfp_provider",
)

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


def _ring_element(shipped: Callable[..., Any]) -> Callable[..., Any]:
    """Return CrypTen's function for words of its ring, which reads keystreams as well."""

    def generate_random_ring_element(
        size: Any, ring_size: int = 2**64, generator: Any = None, **kwargs: Any
    ) -> Any:
        streams = _streams(generator)
        if streams is None:
            return shipped(size, ring_size=ring_size, generator=generator, **kwargs)
        return streams.ring_elements(size)

    return generate_random_ring_element


def _kbit_tensor(shipped: Callable[..., Any]) -> Callable[..., Any]:
    """Return CrypTen's function for strings of k bits, which reads keystreams as well."""

    def generate_kbit_random_tensor(
        size: Any, bitlength: int | None = None, generator: Any = None, **kwargs: Any
    ) -> Any:
        streams = _streams(generator)
        if streams is None:
            return shipped(size, bitlength=bitlength, generator=generator, **kwargs)
        return streams.bit_strings(size, 64 if bitlength is None else bitlength)

    return generate_kbit_random_tensor


def _streams(generator: Any) -> WordStreams | None:
    """Return the keystreams that are asked for; None means torch's generators."""
    if generator is None:
        generator = crypten.generators["local"].get(torch.device("cpu"))
    return generator if isinstance(generator, WordStreams) else None


_DRAWING: Mapping[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "generate_random_ring_element": _ring_element,
    "generate_kbit_random_tensor": _kbit_tensor,
}


def _communicator() -> Any:
    return getattr(_in_force, "communicator", None)


def install() -> None:
    """Put the per-thread views into CrypTen, once per process."""
    with _install_lock:
        if crypten.communicator.DistributedCommunicator is not _ThreadCommunicator:
            crypten.communicator.DistributedCommunicator = _ThreadCommunicator
            crypten.generators = _ThreadGenerators()
            for module in map(importlib.import_module, _DRAWING_MODULES):
                for name, reading_streams in _DRAWING.items():
                    if hasattr(module, name):
                        setattr(module, name, reading_streams(getattr(module, name)))


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
