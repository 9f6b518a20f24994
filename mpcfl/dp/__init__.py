"""Differential privacy: from an update to integers with a share of discrete noise, and its account.

In the order of a round: `clip`, `quantize`, `noise` (with `sampler`); `plan` sizes the noise,
`accountant` and `epsilon` turn noise into a figure, `ledger` remembers what was spent. The
mathematics is in `docs/privacy.md`, its proofs in `docs/proofs.md`.
"""

from __future__ import annotations

from mpcfl.dp.charge import Budget, Charge, planned_charge, realised_charge
from mpcfl.dp.clip import clip_rows
from mpcfl.dp.dropout import DropoutCost, dropout_costs
from mpcfl.dp.epsilon import discrete_gaussian_epsilon, gaussian_epsilon, skellam_epsilon
from mpcfl.dp.grid import Grid, round_grid
from mpcfl.dp.ledger import Ledger, LedgerReport, verify_ledger
from mpcfl.dp.noise import NoiseShare, add_noise, draw_noise_share
from mpcfl.dp.plan import (
    NoisePlan,
    View,
    make_fixed_point_plan,
    make_plan,
    plan_for_job,
    ring_plan_for_job,
)
from mpcfl.dp.quantize import Opened, dequantize_sum, quantize_rows, sum_levels
from mpcfl.dp.sampler import poisson_sample, sample_discrete_gaussian
from mpcfl.dp.skellam import sample_skellam

__all__ = [
    "Budget",
    "Charge",
    "DropoutCost",
    "Grid",
    "Ledger",
    "LedgerReport",
    "NoisePlan",
    "NoiseShare",
    "Opened",
    "View",
    "add_noise",
    "clip_rows",
    "dequantize_sum",
    "discrete_gaussian_epsilon",
    "draw_noise_share",
    "dropout_costs",
    "gaussian_epsilon",
    "make_fixed_point_plan",
    "make_plan",
    "plan_for_job",
    "planned_charge",
    "poisson_sample",
    "quantize_rows",
    "realised_charge",
    "ring_plan_for_job",
    "round_grid",
    "sample_discrete_gaussian",
    "sample_skellam",
    "skellam_epsilon",
    "sum_levels",
    "verify_ledger",
]
