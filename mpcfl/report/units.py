"""Numbers as people read them: seconds, bytes, counts and epsilons with a unit."""

from __future__ import annotations

import math

_BINARY_STEP = 1024.0
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def seconds_text(seconds: float) -> str:
    """Return three significant digits with the unit that suits."""
    for size, unit in _SECOND_UNITS:
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def bytes_text(n_bytes: float) -> str:
    """Return three significant digits with a binary unit."""
    size = float(n_bytes)
    for unit in _BYTE_UNITS[:-1]:
        if size < _BINARY_STEP:
            return f"{_three_digits(size)} {unit}"
        size /= _BINARY_STEP
    return f"{_three_digits(size)} {_BYTE_UNITS[-1]}"


def epsilon_text(epsilon: float | None) -> str:
    """Return an epsilon rounded up, because a smaller one would promise too much."""
    if epsilon is None or not math.isfinite(epsilon):
        return "no guarantee"
    return f"{math.ceil(epsilon * 1e4 - 1e-6) / 1e4:.4f}".rstrip("0").rstrip(".")


def _three_digits(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
