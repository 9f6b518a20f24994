"""Epsilon when clients leave whose noise was counted on: ours beside that of Dordis.

    python benchmarks/published/dordis.py
    python benchmarks/published/dordis.py --json

Nothing is measured; `benchmarks/cases/dropout.py` computes the same for other settings.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from beside import arguments_of, document, load_reported, page

from mpcfl.dp.dropout import dropout_costs

FRACTIONS = (0.1, 0.2, 0.3, 0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print ours beside theirs."""
    options = arguments_of(__doc__, arguments)
    costs = dropout_costs(
        epsilon=6.0, delta=0.01, rounds=150, clients=16, dropped=FRACTIONS, accountant="rdp"
    )
    ours = {
        f"{cost.dropped:.0%} left".replace("%", " %"): {
            "mpcfl, noise planned for all": {"epsilon": cost.epsilon},
            "mpcfl, noise planned for the loss": {"epsilon": cost.planned_epsilon},
        }
        for cost in costs
    }
    print((document if options.json else page)(load_reported("dordis"), ours))
    return 0


if __name__ == "__main__":
    sys.exit(main())
