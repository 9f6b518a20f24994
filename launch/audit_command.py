"""`mpcfl audit`: run an experiment on the real code, print its findings, keep its report.

Each function returns whether the audit saw no fault; the caller turns that into the exit code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from mpcfl.config import Job, load_job
from mpcfl.errors import ConfigError
from mpcfl.launch.jobs import find_job
from mpcfl.report.atomic import write_atomically

# The audit of masks attacks every coalition, and their number doubles with every party.
_MOST_PARTIES_WITH_MASKS = 8


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """What all audits are asked for; `None` leaves it to the job file.

    Attributes:
        job: a job file, or the name of a packaged job.
        parties: number of data parties.
        backend: in place of the job's.
        overrides: the ``--set`` options.
        out: file for the report.
        as_json: print one JSON document instead of text.
    """

    job: str = "digits"
    parties: int | None = None
    backend: str | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    as_json: bool = False

    def load(self) -> Job:
        """Read the job as these options change it."""
        backend = [] if self.backend is None else [f'aggregation.backend="{self.backend}"']
        # A user's own task is importable from where the command is typed, as it is at the ranks.
        sys.path.append(str(Path.cwd()))
        return load_job(find_job(self.job), [*self.overrides, *backend], self.parties)


class Report(Protocol):
    """What every audit returns."""

    @property
    def passed(self) -> bool:
        """True if no check showed a fault."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return one JSON document."""
        ...

    def lines(self) -> Sequence[str]:
        """Return the report as lines of text."""
        ...


def require_new(out: Path | None) -> None:
    """Refuse to write a report over a file, before any work is done."""
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists already; choose another --out, nothing is overwritten")


def run_dp_audit(options: AuditOptions, *, canaries: int, rounds: int, sample_rate: float) -> bool:
    """Run the job's protocol with canaries; print a lower bound on epsilon beside the promise.

    Raises:
        ConfigError: the job promises nothing that this audit can test.
    """
    from mpcfl.audit.privacy import CanarySettings, audit_privacy

    require_new(options.out)
    settings = CanarySettings(canaries, rounds, sample_rate)
    return _finish(audit_privacy(options.load(), settings), options)


def run_noise_audit(options: AuditOptions) -> bool:
    """Collect the noise of the job's protocol and check it.

    Raises:
        ConfigError: the job has no noise in shares.
    """
    from mpcfl.audit.noise_run import audit_noise

    require_new(options.out)
    return _finish(audit_noise(options.load()), options)


def run_masks_audit(options: AuditOptions) -> bool:
    """Tap the wires of the job's backend and look at what goes over them.

    Raises:
        BackendUnavailable: the backend is not there.
        ConfigError: the job shares masks with some parties only, which this audit doesn't try.
    """
    from mpcfl.audit.masks import MaskProbe, audit_masks

    require_new(options.out)
    job = options.load()
    aggregation = job.aggregation
    if aggregation.neighbors != "all":
        raise ConfigError(
            "audit masks tries masks between all pairs of up to 8 parties, and no graph of "
            "neighbors; add --set aggregation.neighbors=all, and see mpcfl plan for the graph"
        )
    all_take_part = job.parties.count <= _MOST_PARTIES_WITH_MASKS
    probe = MaskProbe(
        n_parties=min(job.parties.count, _MOST_PARTIES_WITH_MASKS),
        modulus_bits=aggregation.modulus_bits,
        key_bits=aggregation.key_bits,
        custody=aggregation.custody,
        # Where fewer take part than in the job, more than half of them decrypt.
        threshold=aggregation.threshold if all_take_part else None,
    )
    return _finish(audit_masks(aggregation.backend, probe), options)


def run_inversion_audit(*, batch: int, out: Path | None, as_json: bool) -> bool:
    """Reconstruct digits from a bare update, and fail to from what is really sent.

    Args:
        batch: records of the attacked party.
        out: file for the page with the pictures; a fresh name in ``runs`` by default.
        as_json: print one JSON document; progress goes to standard error.
    """
    from mpcfl.audit.attacked_round import InversionSettings
    from mpcfl.audit.inversion import audit_inversion
    from mpcfl.audit.inversion_report import write_inversion_report

    require_new(out)
    page = Path("runs") / f"inversion-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.html"
    page = page if out is None else out
    report = audit_inversion(InversionSettings(batch=batch))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_inversion_report(report, page)
    (sys.stderr if as_json else sys.stdout).write(f"output: {page}\n")
    return _print(report, as_json=as_json)


def _finish(report: Report, options: AuditOptions) -> bool:
    """Keep the report, print it, and say whether it passed."""
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, json.dumps(report.to_dict(), indent=2) + "\n")
    return _print(report, as_json=options.as_json)


def _print(report: Report, *, as_json: bool) -> bool:
    text = json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines())
    sys.stdout.write(text + "\n")
    return report.passed
