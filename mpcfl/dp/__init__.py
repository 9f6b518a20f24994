"""Differential privacy: from an update to integers with a share of discrete noise, and its account.

In the order of a round: `clip`, `quantize`, `noise` (with `sampler`); `plan` sizes the noise,
`accountant` turns noise into epsilon, `ledger` remembers what was spent. The mathematics
and its proofs are in `docs/privacy.md`.
"""

from __future__ import annotations

from mpcfl.dp.accountant import discrete_gaussian_epsilon, gaussian_epsilon
from mpcfl.dp.charge import Budget, Charge, planned_charge, realised_charge
from mpcfl.dp.clip import clip_rows
from mpcfl.dp.ledger import Ledger, LedgerReport, verify_ledger
from mpcfl.dp.noise import NoiseShare, add_noise, draw_noise_share
from mpcfl.dp.plan import NoisePlan, View, make_fixed_point_plan, make_plan, plan_for_job
from mpcfl.dp.quantize import dequantize_sum, quantize_rows, sum_levels
from mpcfl.dp.sampler import poisson_sample, sample_discrete_gaussian

__all__ = [
    "Budget",
    "Charge",
    "Ledger",
    "LedgerReport",
    "NoisePlan",
    "NoiseShare",
    "View",
    "add_noise",
    "clip_rows",
    "dequantize_sum",
    "discrete_gaussian_epsilon",
    "draw_noise_share",
    "gaussian_epsilon",
    "make_fixed_point_plan",
    "make_plan",
    "plan_for_job",
    "planned_charge",
    "poisson_sample",
    "quantize_rows",
    "realised_charge",
    "sample_discrete_gaussian",
    "sum_levels",
    "verify_ledger",
]
