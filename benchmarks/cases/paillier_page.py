"""From records of the Paillier benchmarks to tables and the page; nothing is run here."""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from paillier_figures import (
    PEERS,
    SPEED,
    Finding,
    Range,
    figures,
    grown_megabytes,
    judge,
    round_costs,
    round_seconds,
    setup_seconds,
    spread,
    timed,
)
from paillier_steps import BITS, FLASHE_PARTIES, FLASHE_VALUES
from sum_cell import Record

from mpcfl.hazmat.packing import SlotLayout
from mpcfl.report.units import bytes_text, seconds_text

# Figures from here on are shown without decimals.
_WHOLE_FROM = 100
# The authors' own run of their setting, with its source.
REPORTED = Path(__file__).parents[1] / "published" / "reported.toml"
_STEPS = ("encrypt", "add", "decrypt")
_FLASHE_SETTING = "262,144 values"
_FLASHE_SUBJECTS = ("theirs: Paillier, packed", "theirs: Paillier", "theirs: FLASHE (symmetric)")
_FLASHE_STEPS = ("encrypt", "encrypt, by the owner", "add", "decrypt")
_PREFIX = "FLASHE's setting, "
_FLASHE_KEY_BITS = 2048

TEMPLATE = Path(__file__).parent / "paillier_page.md"
_NOTHING = "(not measured)"


def page(records: Sequence[Record]) -> str:
    """Return the whole page: the template with all tables in it."""
    tables: dict[str, str] = {}
    for case in (SPEED, PEERS):
        own = [record for record in records if record["case"] == case]
        tables |= tables_of(case, judge(own, figures(case)), own)
    return TEMPLATE.read_text(encoding="utf-8").format(**tables)


def tables_of(case: str, findings: Sequence[Finding], records: Sequence[Record]) -> dict[str, str]:
    """Return the tables of one program, by their names in the template, in their order there."""
    good = [record for record in records if record["failure"] is None]
    found = findings_table(findings) if findings else _NOTHING
    if case == SPEED:
        return {"speed_figures": found, "rounds": rounds_table(good) if good else _NOTHING}
    by_cell = {
        name: [record for record in good if record["name"].startswith(name)]
        for name in ("libraries", "threshold", "flashe")
    }
    makers: dict[str, Callable[[Sequence[Record]], str]] = {
        "libraries": operations_table,
        "threshold": operations_table,
        "flashe": flashe_table,
    }
    tables = {name: makers[name](part) if part else _NOTHING for name, part in by_cell.items()}
    return {"peer_figures": found, **tables}


def findings_table(findings: Sequence[Finding]) -> str:
    """Return the figures with their limits as a Markdown table."""
    lines = []
    for finding in findings:
        figure, found = finding.figure, finding.found
        value, extent, n = ("failed", "", "") if found is None else _texts(found)
        side = "at least" if figure.at_least else "at most"
        limit = "" if figure.limit is None else f"{side} {figure.limit:g}"
        reached = {None: "", True: "yes", False: "**no**"}[finding.reached]
        lines.append((figure.text, value, extent, n, limit, reached))
    return _table(("figure", "value", "smallest to largest", "n", "limit", "reached"), lines)


def _texts(found: Range) -> tuple[str, str, str]:
    digits = 0 if found.median >= _WHOLE_FROM else 3
    low, middle, high = (f"{v:.{digits}f}" for v in (found.low, found.median, found.high))
    return middle, f"{low} to {high}" if found.n > 1 else "", str(found.n)


def rounds_table(records: Sequence[Record]) -> str:
    """Return what was summed and what it took, a row per cell."""
    head = (
        "cell",
        "sum",
        "processor per coordinate, us",
        "until all have it",
        "opening: processor",
        "memory, MB",
        "n",
    )
    lines = []
    for name in dict.fromkeys(record["name"] for record in sorted(records, key=_place)):
        launches = [record for record in records if record["name"] == name]
        settings, costs = launches[0]["settings"], spread(round_costs(launches))
        middle, extent, n = _texts(costs)
        # Randomizers of the next sum are made while this one is timed.
        cost = "" if settings["precompute"] else f"{middle} ({extent})" if extent else middle
        lines.append(
            (
                name,
                f"{settings['parties']} x {settings['dim']:,}, {settings['custody']}",
                cost,
                seconds_text(statistics.median(round_seconds(launches))),
                seconds_text(statistics.median(setup_seconds(launches))),
                f"{statistics.median(grown_megabytes(launches)):.0f}",
                n,
            )
        )
    return _table(head, lines)


def _place(record: Record) -> tuple[int, int, str]:
    # Random order of launches is no order for people.
    return record["settings"]["key_bits"], record["settings"]["parties"], record["name"]


def operations_table(records: Sequence[Record]) -> str:
    """Return a row per subject and key size, a column per operation."""
    operations = list(
        dict.fromkeys(
            operation
            for record in records
            for by_operation in record["measured"]["cpu_seconds"].values()
            for operation in sorted(by_operation)
        )
    )
    lines = []
    for record in records:
        subjects = record["settings"]["subjects"]
        for subject in (s for s in subjects if s in record["measured"]["cpu_seconds"]):
            known = record["measured"]["cpu_seconds"][subject]
            cells = [
                _micro(spread(timed([record], subject, operation))) if operation in known else ""
                for operation in operations
            ]
            lines.append((subject, str(record["settings"]["key_bits"]), *cells))
    return _table(("", "bits", *(f"{name}, us" for name in operations)), lines)


def _micro(found: Range) -> str:
    middle, low, high = (value * 1e6 for value in (found.median, found.low, found.high))
    digits = 0 if middle >= _WHOLE_FROM else 2
    extent = f" ({low:,.{digits}f} to {high:,.{digits}f})" if found.n > 1 else ""
    return f"{middle:,.{digits}f}{extent}"


def flashe_table(records: Sequence[Record]) -> str:
    """Return our seconds beside those that FLASHE's authors report."""
    head = ("", *(f"{step}, s" for step in _FLASHE_STEPS), "bytes a party sends")
    lines = []
    for subject in (s for r in records for s in r["settings"]["subjects"]):
        steps = [spread(timed(records, subject, step)).median for step in _FLASHE_STEPS]
        sent = f"{_flashe_bytes():,} ({bytes_text(_flashe_bytes())})"
        name = f"paillier with {subject.removeprefix(_PREFIX)}"
        lines.append((name, *(f"{seconds:.3f}" for seconds in steps), sent))
    reported = tomllib.loads(REPORTED.read_text(encoding="utf-8"))["flashe"]["figures"]
    for name in _FLASHE_SUBJECTS:
        theirs = reported[_FLASHE_SETTING][name]
        encrypt, add, decrypt = (
            f"{theirs[key]:.3f}" for key in ("encrypt_s", "add_s", "decrypt_s")
        )
        size = f"{theirs['bytes']:,} ({bytes_text(theirs['bytes'])})"
        lines.append((name, encrypt, "", add, decrypt, size))
    return _table(head, lines)


def _flashe_bytes() -> int:
    """Return the bytes of one party's ciphertexts."""
    layout = SlotLayout(BITS, FLASHE_PARTIES, _FLASHE_KEY_BITS - 1)
    return layout.n_plaintexts(FLASHE_VALUES) * (2 * _FLASHE_KEY_BITS // 8)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
