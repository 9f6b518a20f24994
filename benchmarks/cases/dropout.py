"""What dropout costs when the noise was planned without it; prints one row per fraction.

    python benchmarks/cases/dropout.py            # the setting of Dordis: 16 clients a round
    python benchmarks/cases/dropout.py --json

The setting is that of Dordis (Jiang, Wang, Chen 2024, arXiv 2209.12528): 16 of 100 clients a round,
150 rounds, epsilon 6 at delta 0.01, Renyi accounting, here without amplification by sampling.
Nothing is drawn: every figure is computed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mpcfl.dp.dropout import DropoutCost, dropout_costs


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one JSON document."""
    options = _parser().parse_args(arguments)
    costs = dropout_costs(
        epsilon=options.epsilon,
        delta=options.delta,
        rounds=options.rounds,
        clients=options.clients,
        dropped=options.dropped,
        accountant=options.accountant,
        sample_rate=options.sample_rate,
    )
    if options.json:
        print(json.dumps({**vars(options), "costs": [asdict(cost) for cost in costs]}))
        return
    print(table(costs))


def table(costs: Sequence[DropoutCost]) -> str:
    """Return the rows as text, epsilon to two decimals."""
    names = ("dropped", "clients", "epsilon", "planned for it", "z of that plan")
    widths = (8, 8, 9, 15, 15)
    head = " ".join(f"{name:>{width}}" for name, width in zip(names, widths, strict=True))
    rows = [
        f"{cost.dropped:>8.0%} {cost.clients_left:>8.1f} {cost.epsilon:>9.2f} "
        f"{cost.planned_epsilon:>15.2f} {cost.planned_noise_multiplier:>15.4f}"
        for cost in costs
    ]
    return "\n".join([head, *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--epsilon", type=float, default=6.0)
    parser.add_argument("--delta", type=float, default=0.01)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--clients", type=float, default=16.0, help="shares of a full sum")
    parser.add_argument(
        "--dropped", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4], help="fractions"
    )
    parser.add_argument("--accountant", choices=["rdp", "pld"], default="rdp")
    parser.add_argument("--sample-rate", type=float, default=1.0, help="of records, in secret")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    main()
