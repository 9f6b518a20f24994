"""mpcfl: federated learning whose model updates only ever leave a party as protected, noised sums.

Importing this package loads neither torch, crypten nor mpi4py; each name below is
loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcfl import dp as dp
    from mpcfl.launch.federation import Federation as Federation
    from mpcfl.launch.federation import FederationResult as FederationResult
    from mpcfl.learn.flower import FlowerTask as FlowerTask
    from mpcfl.learn.loop import LoopTask as LoopTask
    from mpcfl.net.known_peers import open_authenticated as open_authenticated
    from mpcfl.secagg.key_holding import hold_share as load_key_share
    from mpcfl.secagg.session import open_secure_sum as open_secure_sum
    from mpcfl.secagg.session import secure_sum as secure_sum

__version__ = "0.1.0"
__all__ = [
    "Federation",
    "FederationResult",
    "FlowerTask",
    "LoopTask",
    "__version__",
    "dp",
    "load_key_share",
    "open_authenticated",
    "open_secure_sum",
    "secure_sum",
]

_HOMES = {
    "Federation": ("mpcfl.launch.federation", "Federation"),
    "FederationResult": ("mpcfl.launch.federation", "FederationResult"),
    "FlowerTask": ("mpcfl.learn.flower", "FlowerTask"),
    "LoopTask": ("mpcfl.learn.loop", "LoopTask"),
    "load_key_share": ("mpcfl.secagg.key_holding", "hold_share"),
    "open_authenticated": ("mpcfl.net.known_peers", "open_authenticated"),
    "open_secure_sum": ("mpcfl.secagg.session", "open_secure_sum"),
    "secure_sum": ("mpcfl.secagg.session", "secure_sum"),
}


def __getattr__(name: str) -> Any:
    if name == "dp":
        return import_module("mpcfl.dp")
    if name in _HOMES:
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'mpcfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
