"""Puts figures of ours beside those that others published, as Markdown or JSON.

Nothing is measured here. What others published is data (`reported.toml`), with its source and
the machine it came from; a ratio to it is that of two machines as well as that of two programs.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from mpcfl.bench.machine import checkout_commit, this_machine

REPORTED = Path(__file__).parent / "reported.toml"
# Quantity by subject: "encrypt_s" of "theirs: Paillier, packed".
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Reported:
    """One published table.

    Attributes:
        title: what it is of.
        source: where it stands, exactly.
        machine: what it was measured on.
        reference: the subject of theirs that ours is a multiple of.
        references: the same for some of ours, by their names, which another one is nearer to.
        notes: what a reader has to know to compare.
        figures: by setting, by subject, by quantity, whose unit is the end of its name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    title: str
    source: str
    machine: str
    reference: str
    notes: list[str]
    figures: dict[str, dict[str, dict[str, int | float]]]
    references: dict[str, str] = field(default_factory=dict)


_ADAPTER: TypeAdapter[dict[str, Reported]] = TypeAdapter(dict[str, Reported])


def load_reported(name: str) -> Reported:
    """Return a published table by its name in `reported.toml`."""
    return _ADAPTER.validate_python(tomllib.loads(REPORTED.read_text(encoding="utf-8")))[name]


def page(reported: Reported, ours: Mapping[str, Figures]) -> str:
    """Return both as Markdown: a table per setting, then what to know.

    Args:
        reported: theirs.
        ours: our figures by setting; only these settings are shown.
    """
    machine = this_machine()
    tables = [
        f"{setting}\n\n{_table(reported, reported.figures[setting], figures)}"
        for setting, figures in ours.items()
    ]
    notes = [
        f"theirs: {reported.source}",
        f"their machine: {reported.machine}",
        f"our machine: {machine.cpu}, {machine.cores} cores, commit {checkout_commit()}",
        "what is in brackets is ours as a multiple of " + _references(reported),
        *reported.notes,
    ]
    lines = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join([f"## {reported.title}", *tables, lines])


def document(reported: Reported, ours: Mapping[str, Figures]) -> str:
    """Return both as JSON."""
    return json.dumps(
        {
            "reported": asdict(reported),
            "ours": ours,
            "machine": asdict(this_machine()),
            "commit": checkout_commit(),
        },
        indent=1,
    )


def _references(reported: Reported) -> str:
    others = (f"for {name}, {theirs!r}" for name, theirs in reported.references.items())
    return "; ".join([repr(reported.reference), *others])


def _table(reported: Reported, theirs: Figures, ours: Figures) -> str:
    rows = {**theirs, **ours}
    quantities = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [
        ["", *(name.replace("_", ", ") for name in quantities)],
        ["---"] * (len(quantities) + 1),
    ]
    for subject, row in rows.items():
        # Theirs is shown as it is.
        reference = theirs[reported.references.get(subject, reported.reference)]
        beside = reference if subject in ours else {}
        lines.append([subject, *(_cell(row.get(name), beside.get(name)) for name in quantities)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: float | None, reference: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return text if reference is None else f"{text} ({value / reference:.3g})"


def arguments_of(description: str | None, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse what the programs share."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--smoke", action="store_true", help="one visit of everything: does it run?"
    )
    return parser.parse_args(arguments)
