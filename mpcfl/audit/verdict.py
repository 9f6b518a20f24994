"""What an audit found, check by check, as text and as JSON.

An audit is an experiment. A check that fails shows a fault, up to the stated false-positive
rate. A check that passes shows only that this experiment saw none: it proves nothing, and
`AuditReport` says so wherever it is printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "mpcfl/audit/v1"
# Per finding; a check that looks at many figures divides it among them (union bound).
FALSE_POSITIVE_RATE = 1e-9
CAVEAT = "An audit can show a fault; it can't prove that there is none."


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: short name, stable, with hyphens.
        passed: False if the check shows a fault.
        detail: one sentence with the figure that was measured and the bound that it was held to.
        figures: the same figures as numbers, by name.
    """

    check: str
    passed: bool
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; a figure that is not finite becomes null."""
        figures = {
            name: float(value) if math.isfinite(value) else None
            for name, value in self.figures.items()
        }
        return {
            "check": self.check,
            "passed": bool(self.passed),
            "detail": self.detail,
            "figures": figures,
        }

    def line(self) -> str:
        """Return the finding as one line of text."""
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.check}: {self.detail}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """All findings of one audit.

    Attributes:
        subject: what was audited, as "masks of backend crypten".
        findings: one per check, in the order in which they were made.
        settings: what the experiment was run with; JSON values.
        notes: sentences about what was not looked at, and why.
    """

    subject: str
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if there was at least one check and none showed a fault."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as one JSON document."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "passed": self.passed,
            "settings": dict(self.settings),
            "findings": [finding.to_dict() for finding in self.findings],
            "notes": list(self.notes),
            "caveat": CAVEAT,
        }

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        failed = sum(not finding.passed for finding in self.findings)
        verdict = "no fault seen" if self.passed else f"{failed} of {len(self.findings)} failed"
        return [
            f"audit of {self.subject}: {verdict}",
            *(finding.line() for finding in self.findings),
            *(f"note  {note}" for note in self.notes),
            CAVEAT,
        ]
