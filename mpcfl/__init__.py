"""mpcfl: federated learning whose model updates only ever leave a party as protected, noised sums.

Importing this package loads neither torch, crypten nor mpi4py; each name below is
loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcfl import dp as dp
    from mpcfl.secagg.session import open_secure_sum as open_secure_sum
    from mpcfl.secagg.session import secure_sum as secure_sum

__version__ = "0.1.0"
__all__ = ["__version__", "dp", "open_secure_sum", "secure_sum"]

_HOMES = {"open_secure_sum": "mpcfl.secagg.session", "secure_sum": "mpcfl.secagg.session"}


def __getattr__(name: str) -> Any:
    if name == "dp":
        return import_module("mpcfl.dp")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mpcfl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
