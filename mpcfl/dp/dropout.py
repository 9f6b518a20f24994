"""What missing clients cost: epsilon of a run whose noise was planned for more shares than came.

The noise of a sum is made of equal shares, one per client. If a fraction p of the clients leaves
after the noise was sized for all of them, the sum carries z sqrt(1 - p) in place of z, in every
round. A plan that expects the loss (`max_dropout`) makes the shares larger, by 1 / sqrt(1 - p).

The view is an outsider's: all shares that arrive count, none is known to a coalition. No
amplification is claimed for choosing the clients. Figures are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpcfl.dp.accountant import accountant_kind, check_release
from mpcfl.dp.calibrate import Target, calibrate
from mpcfl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DropoutCost:
    """What one fraction of missing clients costs.

    Attributes:
        dropped: fraction p of the clients that leave, in every round.
        clients_left: expected number of shares in a sum.
        noise_multiplier: z that is left if the noise was sized for all clients.
        epsilon: what the run then really costs.
        planned_noise_multiplier: z of a full sum under a plan for this loss.
        planned_epsilon: what the run costs under that plan, at this loss; within the budget.
    """

    dropped: float
    clients_left: float
    noise_multiplier: float
    epsilon: float
    planned_noise_multiplier: float
    planned_epsilon: float


def dropout_costs(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    clients: float,
    dropped: Sequence[float],
    accountant: str = "rdp",
    sample_rate: float = 1.0,
) -> tuple[DropoutCost, ...]:
    """Return what a plan without dropout really costs, and a plan with it, per fraction.

    Args:
        epsilon: budget that the noise is calibrated to when nobody leaves.
        delta: of the whole run.
        rounds: number of releases.
        clients: shares of a full sum; a mean may have a fraction.
        dropped: fractions of the clients that leave, each in [0, 1).
        accountant: "rdp" or "pld".
        sample_rate: q of secret Poisson sampling of records; never of clients.

    Raises:
        ConfigError: an argument is out of range.
    """
    check_release(sample_rate, rounds, delta)
    if not 0.0 < epsilon < math.inf or rounds < 1 or not clients > 0:
        raise ConfigError("epsilon and clients must be greater than 0 and rounds at least 1")
    for fraction in dropped:
        if not 0.0 <= fraction < 1.0:
            raise ConfigError(f"dropped is {fraction}; it must lie in [0, 1)")
    target = Target(epsilon, delta, rounds, sample_rate, accountant_kind(accountant))
    return tuple(_cost(target, clients, fraction) for fraction in dropped)


def _cost(target: Target, clients: float, dropped: float) -> DropoutCost:
    z, left = calibrate(target), 1.0 - dropped
    planned = z / math.sqrt(left)
    realised = z * math.sqrt(left)
    return DropoutCost(
        dropped=dropped,
        clients_left=clients * left,
        noise_multiplier=realised,
        epsilon=target.spent(realised),
        planned_noise_multiplier=planned,
        planned_epsilon=target.spent(planned * math.sqrt(left)),
    )
