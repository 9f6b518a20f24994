"""One operation of Paillier: ours and HEU run here, beside the table that HEU's authors publish.

    python benchmarks/published/heu_paillier.py            # some two minutes
    python benchmarks/published/heu_paillier.py --smoke    # does it run?

Needs `pip install "mpcfl[phe,paillier-peers]"`; what is not installed is left out. Figures of a
busy machine say nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from beside import arguments_of, document, load_reported, page
from steps import Bench, time_steps

from mpcfl.errors import MpcflError

BENCH = Bench("heu", ("HEU ZPaillier", "mpcfl, gmpy2", "mpcfl, kernel"), 2048)
_MICRO = 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print ours beside theirs."""
    options = arguments_of(__doc__, arguments)
    try:
        seconds = time_steps(BENCH, smoke=options.smoke)
    except MpcflError as error:
        print(error, file=sys.stderr)
        return 1
    rows = {
        f"{subject}, here": {
            f"{name}_us": found[name] * _MICRO for name in ("encrypt", "add", "decrypt")
        }
        for subject, found in seconds.items()
    }
    for subject, found in seconds.items():
        if "encrypt, by the owner" in found:
            rows[f"{subject}, here, by the owner of the key"] = {
                "encrypt_us": found["encrypt, by the owner"] * _MICRO
            }
    print((document if options.json else page)(load_reported("heu"), {"one operation": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
