"""Says why no noise plan fits, and names the nearest requests that do.

For one sigma the noise multipliers that fit the ring form an interval: too small a multiplier
makes the signal outgrow the ring, too large a one leaves no level to the signal. Both ends are
found by bisection for every sigma, so the nearest multiplier on either side is really the
nearest, also where the intervals leave a gap between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from mpcfl.dp.calibrate import calibrate
from mpcfl.dp.request import MOST_BITS, PlanRequest
from mpcfl.dp.ring_fit import fit_ring, fit_sigma, is_usable, row_levels, sensitivity, sigmas

# Bisection in logarithms, until the ends agree to 2^-40 of their size or so.
_BISECTIONS = 60
# Noise multipliers beyond these belong to budgets that nobody asks for.
_SMALLEST, _LARGEST = 1e-6, 1e9
# An epsilon is named with three digits, or with more if so few don't hit a narrow interval.
_DIGITS = range(3, 9)


def explain_infeasible(request: PlanRequest, multiplier: float) -> str:
    """Say what doesn't fit, and the nearest requests that do."""
    remedies = [*_larger_rings(request, multiplier)]
    given = request.noise_multiplier is not None
    nearest = (nearest_multiplier if given else nearest_epsilon)(request, multiplier)
    if nearest is not None:
        remedies.append(f"set {'noise_multiplier' if given else 'epsilon'} to {nearest:.9g}")
    remedy = ", or ".join(remedies) or "use more parties, fewer coordinates or fewer rounds"
    return (
        f"no noise plan fits epsilon {request.epsilon:g} for {request.parties} parties and "
        f"{request.dim} coordinates into {request.modulus_bits} modulus bits; {remedy}"
    )


def _larger_rings(request: PlanRequest, multiplier: float) -> Iterator[str]:
    """Yield the smallest ring that works; without the rotation if only a wide one does."""
    for rotation in dict.fromkeys((request.rotation, "none")):
        for bits in range(request.modulus_bits + 1, MOST_BITS[rotation] + 1):
            wider = replace(request, modulus_bits=bits, rotation=rotation)
            if fit_ring(wider, multiplier) is not None:
                changed = "" if rotation == request.rotation else f" and rotation to {rotation!r}"
                yield f"set modulus_bits to at least {bits}{changed}"
                return


def nearest_multiplier(request: PlanRequest, multiplier: float) -> float | None:
    """Return the noise multiplier nearest to this one that fits, or None if none does.

    The result has three significant digits (more in a narrow interval), was checked to fit, and
    is nearest by absolute difference.
    """

    def fits(z: float) -> bool:
        return fit_ring(request, z) is not None

    below, above = _edges_around(request, multiplier)
    found = [_first_named(below, _down, fits), _first_named(above, _up, fits)]
    named = [z for z in found if z is not None]
    return min(named, key=lambda z: abs(z - multiplier), default=None)


def nearest_epsilon(request: PlanRequest, multiplier: float) -> float | None:
    """Return the epsilon nearest to the one asked for that fits, or None if none does.

    Args:
        request: what doesn't fit.
        multiplier: the noise multiplier that its epsilon needs.

    Returns:
        As for `nearest_multiplier`: three digits or more, checked, nearest by difference.
    """

    def fits(epsilon: float) -> bool:
        tried = replace(request, epsilon=epsilon)
        return fit_ring(tried, calibrate(tried.target)) is not None

    below, above = _edges_around(request, multiplier)
    spent = request.target.spent
    # Epsilon falls as the multiplier grows: a larger epsilon belongs to a smaller multiplier.
    found = [
        _first_named((spent(z) for z in below), _up, fits),
        _first_named((spent(z) for z in above), _down, fits),
    ]
    named = [epsilon for epsilon in found if epsilon is not None]
    return min(named, key=lambda epsilon: abs(epsilon - request.epsilon), default=None)


def _edges_around(request: PlanRequest, multiplier: float) -> tuple[list[float], list[float]]:
    """Return the ends of intervals below and above the multiplier, nearest first."""
    edges = [*_edges(request)]
    below = sorted((z for z in edges if z < multiplier), reverse=True)
    return below, sorted(z for z in edges if z > multiplier)


def _first_named(
    edges: Iterable[float],
    rounded: Callable[[float, int], float],
    fits: Callable[[float], bool],
) -> float | None:
    """Return the first short number that fits, just inside one of these edges."""
    for edge in edges:
        if not 0.0 < edge < math.inf:
            continue
        for digits in _DIGITS:
            named = rounded(edge, digits)
            if named > 0.0 and fits(named):
                return named
    return None


def _up(value: float, digits: int) -> float:
    """Round to so many significant digits, upwards."""
    rounded = float(f"{value:.{digits - 1}e}")
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return rounded if rounded >= value else float(f"{rounded + step:.{digits - 1}e}")


def _down(value: float, digits: int) -> float:
    """Round to so many significant digits, downwards."""
    rounded = float(f"{value:.{digits - 1}e}")
    step = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return rounded if rounded <= value else float(f"{rounded - step:.{digits - 1}e}")


def _edges(request: PlanRequest) -> Iterator[float]:
    """Yield both ends, just inside, of the interval of multipliers that fit, for each sigma."""
    for sigma in sigmas(request):
        inside = _inner_point(request, sigma)
        if inside is None:
            continue

        def fits(z: float, sigma: int = sigma) -> bool:
            return fit_sigma(request, z, sigma) is not None

        yield _bisect(fits, inside, _SMALLEST)
        yield _bisect(fits, inside, _LARGEST)


def _inner_point(request: PlanRequest, sigma: int) -> float | None:
    """Return a multiplier that fits with this sigma, or None if there is none.

    The signal is smallest at the largest multiplier that leaves it any level.
    """

    def leaves_levels(z: float) -> bool:
        bound = sensitivity(request, z, sigma)
        return is_usable(sigma, bound, row_levels(request, bound)[0])

    if not leaves_levels(_SMALLEST):
        return None
    largest = _bisect(leaves_levels, _SMALLEST, _LARGEST)
    return largest if fit_sigma(request, largest, sigma) is not None else None


def _bisect(holds: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return the last point from ``inside`` towards ``outside`` at which it holds."""
    if holds(outside):
        return outside
    for _ in range(_BISECTIONS):
        middle = math.sqrt(inside * outside)
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside
