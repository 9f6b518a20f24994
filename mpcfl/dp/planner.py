"""Calibrates the noise for a request and fits it into the ring: what every plan comes from.

`request.py` says what may be asked, `ring_fit.py` and `wrap_bound.py` what fits, and
`infeasible.py` what to ask for instead.
"""

from __future__ import annotations

import math
from dataclasses import replace

from mpcfl.dp.calibrate import calibrate
from mpcfl.dp.infeasible import explain_infeasible
from mpcfl.dp.request import PlanRequest
from mpcfl.dp.ring_fit import Fit, fit_ring
from mpcfl.errors import PlanError


def find_fit(request: PlanRequest) -> Fit:
    """Calibrate the noise and fit it into the ring.

    Raises:
        PlanError: nothing fits; names the smallest ring and the nearest epsilon that do. Or the
            given noise multiplier doesn't last for one sum.
    """
    asked = request.noise_multiplier
    if asked is not None:
        _check_one_round(request, asked)
    multiplier = calibrate(request.target) if asked is None else asked
    fit = fit_ring(request, multiplier)
    if fit is None:
        raise PlanError(explain_infeasible(request, multiplier))
    return fit


def _check_one_round(request: PlanRequest, multiplier: float) -> None:
    """Refuse a given noise multiplier with which no sum at all could be opened."""
    one = replace(request.target, releases=request.releases_per_round)
    cost = one.spent(multiplier)
    if cost > request.epsilon:
        # Rounded up to three decimals.
        enough = math.ceil(calibrate(one) * 1000) / 1000
        raise PlanError(
            f"with noise_multiplier {multiplier:g} one round costs epsilon {cost:.6g}, and the "
            f"budget is {request.epsilon:g}, so no round could run; set noise_multiplier to at "
            f"least {enough} for one round, leave it out to have it calibrated for "
            f"{request.rounds + request.spare_attempts}, or raise epsilon"
        )
