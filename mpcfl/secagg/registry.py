"""Backends by name: those built in and those that other packages add.

A package adds a backend through the entry-point group ``mpcfl.backends``; the entry
names a `BackendFactory`. It is loaded only when it is asked for.
"""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points

from mpcfl.errors import BackendUnavailable
from mpcfl.secagg.base import BackendFactory

GROUP = "mpcfl.backends"
# These show inputs to somebody they should not; only for baselines.
INSECURE_BACKENDS = frozenset({"plain", "crypten-stock"})
# Packages whose versions all parties of a run compare.
_ALWAYS = ("cryptography", "dp-accounting", "numpy", "torch")
_NEEDS = {
    "crypten": ("crypten",),
    "crypten-stock": ("crypten",),
    "paillier": ("gmpy2",),
    "phe": ("gmpy2", "phe"),
}
_REMEDIES = {
    "crypten": 'pip install "mpcfl[crypten]" && pip install --no-deps crypten==0.4.1',
    "crypten-stock": 'pip install "mpcfl[crypten]" && pip install --no-deps crypten==0.4.1',
    "paillier": 'pip install "mpcfl[paillier]"',
    "phe": 'pip install "mpcfl[phe]"',
}


def backend_names() -> tuple[str, ...]:
    """Return the names of all registered backends, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load_backend(name: str) -> BackendFactory:
    """Import a backend.

    Raises:
        BackendUnavailable: no backend has that name, or a package that it needs is missing;
            the message names the remedy.
    """
    entry = _find(name)
    try:
        factory: BackendFactory = entry.load()
    except ImportError as error:
        remedy = _REMEDIES.get(name, f"install what {entry.value} needs")
        raise BackendUnavailable(
            f"backend {name!r} needs the package {error.name!r}, which is not installed; "
            f"run: {remedy}"
        ) from error
    return factory


def require_backend(name: str) -> None:
    """Refuse a name that no backend has, without importing anything.

    Raises:
        BackendUnavailable: no backend has that name.
    """
    _find(name)


def packages_of(name: str) -> tuple[str, ...]:
    """Return the packages on which the results of a run with a backend depend."""
    return (*_ALWAYS, *_NEEDS.get(name, ()))


def _find(name: str) -> EntryPoint:
    found = tuple(entry_points(group=GROUP, name=name))
    if found:
        return found[0]
    known = backend_names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    raise BackendUnavailable(f"there is no backend {name!r}; {hint}")
