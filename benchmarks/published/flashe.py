"""Packed Paillier and CKKS run here, beside what FLASHE's authors report for them and for FLASHE.

    python benchmarks/published/flashe.py            # some three minutes
    python benchmarks/published/flashe.py --smoke    # does it run?

CKKS needs `pip install "mpcfl[peers]"`; what is not installed is left out. Figures of a busy
machine say nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

from beside import arguments_of, document, load_reported, page
from steps import Bench, time_steps

from mpcfl.errors import MpcflError
from mpcfl.hazmat.packing import SlotLayout

VALUES = (65_536, 262_144)
_BITS, _PARTIES, _KEY_BITS = 16, 10, 2048
_SUBJECTS = ("FLASHE's setting, gmpy2", "FLASHE's setting, kernel")
_STEPS = ("encrypt", "add", "decrypt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print ours beside theirs."""
    options = arguments_of(__doc__, arguments)
    # One quick size shows that all of it runs.
    sizes = VALUES[:1] if options.smoke else VALUES
    try:
        ours = {f"{count:,} values": _figures(count, smoke=options.smoke) for count in sizes}
    except MpcflError as error:
        print(error, file=sys.stderr)
        return 1
    print((document if options.json else page)(load_reported("flashe"), ours))
    return 0


def _figures(count: int, *, smoke: bool) -> dict[str, dict[str, float]]:
    subjects = (*_SUBJECTS, "CKKS by TenSEAL")
    bench = Bench("flashe", tuple(f"{s}, {count} values" for s in subjects), _KEY_BITS, rounds=5)
    figures: dict[str, dict[str, float]] = {}
    for subject, found in time_steps(bench, smoke=smoke).items():
        row: dict[str, float] = {f"{name}_s": found[name] for name in _STEPS}
        if "encrypt, by the owner" in found:
            name = f"mpcfl, paillier with {subject.split(', ')[1]}"
            figures[name] = {**row, "bytes": paillier_bytes(count)}
            figures[f"{name}, by an owner of the key"] = {
                "encrypt_s": found["encrypt, by the owner"]
            }
        else:
            figures["TenSEAL's CKKS, here"] = {**row, "bytes": ckks_bytes(count)}
    return figures


def paillier_bytes(count: int) -> int:
    """Return the bytes of one party's ciphertexts of so many values."""
    layout = SlotLayout(_BITS, _PARTIES, _KEY_BITS - 1)
    return layout.n_plaintexts(count) * (2 * _KEY_BITS // 8)


def ckks_bytes(count: int) -> int:
    """Return the same for CKKS: measured, since TenSEAL compresses."""
    if find_spec("tenseal") is None:
        return 0
    from ckks_steps import sent_bytes

    return sent_bytes(count)


if __name__ == "__main__":
    sys.exit(main())
