"""What a secure sum with Paillier costs as a whole, beside `phe`: all processes, over MPI.

    python benchmarks/cases/paillier_speed.py                     # all cells; some ten minutes
    python benchmarks/cases/paillier_speed.py --only phe-2048,kernel-2048
    python benchmarks/cases/paillier_speed.py --smoke             # does it run? nothing is kept
    python benchmarks/cases/paillier_speed.py --table FILE.jsonl  # runs nothing

A round is: four parties encrypt 16-bit values, a fifth process without key and data adds the
ciphertexts, the parties decrypt the sum. Launches come in random order. Bytes and memory are those
of sums that are large enough to show them. Figures of a busy machine say nothing.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from paillier_cell import CLIENTS, GMPY2, HOLDER, THRESHOLD, Round, launch
from paillier_command import Program, run
from paillier_figures import SPEED
from paillier_steps import FLASHE_PARTIES, FLASHE_VALUES
from paillier_without_kernel import has_kernel

_LARGE_DIM = 10_000_000
_BYTES_PARTIES = 8
# A partial decryption takes many times as long as what the owner of a key does.
_THRESHOLD_DIM = 100_000
# Coordinates that phe sums in some twenty seconds of two cores.
_PHE_DIM, _PHE_LONG_KEY_DIM = 1000, 300
_SMOKE_DIM = 200
_SMOKE_PARTIES = 3
_SMOKE_PHE_DIM = 2

phe = partial(Round, backend="phe", arithmetic=GMPY2, launches=3)


def cells() -> list[Round]:
    """Return every cell."""
    custodies = (CLIENTS, HOLDER)
    return [
        phe("phe-2048", dim=_PHE_DIM),
        phe("phe-3072", dim=_PHE_LONG_KEY_DIM, key_bits=3072),
        Round("gmpy2-2048", arithmetic=GMPY2, launches=3),
        Round("gmpy2-3072", arithmetic=GMPY2, key_bits=3072, launches=3),
        Round("kernel-2048", sums=1),
        Round("kernel-3072", key_bits=3072, launches=3),
        Round("holder-2048", custody=HOLDER, launches=3),
        Round("sum-threshold", custody=THRESHOLD, parties=5, dim=_THRESHOLD_DIM, launches=2),
        *(Round(f"bytes-{c}", custody=c, parties=_BYTES_PARTIES, launches=1) for c in custodies),
        *(Round(f"memory-{c}", custody=c, dim=_LARGE_DIM, launches=1) for c in custodies),
        Round("flashe", parties=FLASHE_PARTIES, dim=FLASHE_VALUES, launches=3),
        Round(
            "flashe-prepared",
            parties=FLASHE_PARTIES,
            dim=FLASHE_VALUES,
            launches=3,
            precompute=True,
        ),
    ]


def plan(chosen: Sequence[Round], smoke: bool) -> list[Round]:
    """Return one item per launch, in random order; for a smoke test, a tiny one of each kind."""
    if smoke:
        return _tiny(chosen)
    launches = [cell for cell in chosen for _ in range(cell.launches)]
    secrets.SystemRandom().shuffle(launches)
    return launches


def _tiny(chosen: Sequence[Round]) -> list[Round]:
    kinds: dict[tuple[str, str, str], Round] = {}
    for cell in chosen:
        if cell.arithmetic == GMPY2 or has_kernel():
            kinds.setdefault((cell.backend, cell.custody, cell.arithmetic), cell)
    return [
        replace(
            cell,
            dim=_SMOKE_PHE_DIM if cell.backend == "phe" else _SMOKE_DIM,
            parties=_SMOKE_PARTIES,
            launches=1,
            timeout_s=120.0,
        )
        for cell in kinds.values()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or read, and print; see `paillier_command.run` for the exit code."""
    measure = partial(launch, SPEED)
    return run(Program(SPEED, __doc__, cells(), plan, measure), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
