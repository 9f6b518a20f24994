"""The page of a training run: what was learned, what it cost in privacy, time and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpcfl.report import chart, overhead, page, threat_model
from mpcfl.report.atomic import write_atomically
from mpcfl.report.run_record import PrivacyRecord, RoundRecord, RunRecord
from mpcfl.report.units import bytes_text, epsilon_text, seconds_text

_MIB = 1 << 20


def write_run_report(record: RunRecord, path: Path) -> None:
    """Write one self-contained HTML file about a run; an older one is replaced as a whole."""
    write_atomically(path, run_report(record))


def run_report(record: RunRecord) -> str:
    """Return the page as text; the same record gives the same bytes."""
    title = f"mpcfl run: {record.job.get('task', 'unnamed task')}"
    lead = (
        f"{record.parties} parties, backend {record.backend}, {record.dim:,} parameters, "
        f"{len(record.rounds)} rounds"
    )
    parts = [page.cards(_headline(record))]
    if record.stopped_early is not None:
        parts.append(page.note(f"Stopped early: {record.stopped_early}", bad=True))
    parts += [
        _progress(record),
        _cost(record.rounds),
        _privacy(record),
        _threats(record),
        _mapping("The plan", "No noise plan: the run had no privacy.", record.plan),
        _mapping("The job", "The job is empty.", record.job),
        _rounds(record.rounds),
        _mapping("Versions", "No versions were recorded.", record.versions),
        _model(record),
    ]
    return page.page(title, lead, parts)


def _headline(record: RunRecord) -> dict[str, str]:
    privacy = record.privacy
    spent = "no privacy"
    if privacy.unit != "none":
        spent = f"{epsilon_text(privacy.epsilon)} of {epsilon_text(privacy.epsilon_planned)}"
    seconds = sum(sum(r.seconds.values()) for r in record.rounds)
    return {
        "epsilon spent of planned": spent,
        "accuracy": _number(record.metrics.get("accuracy")),
        "time in the rounds": seconds_text(seconds),
        "bytes sent, all parties": bytes_text(sum(r.bytes_sent for r in record.rounds)),
    }


def _progress(record: RunRecord) -> str:
    rounds = record.rounds
    if not rounds:
        return page.section("Learning", page.paragraph("No round was completed."))
    x = [r.round for r in rounds]
    charts = {}
    for name, label in (("accuracy", "Accuracy on public test data"), ("loss", "Loss")):
        measured = [r for r in rounds if getattr(r, name) is not None]
        if measured:
            heights = [getattr(r, name) for r in measured]
            numbers = [r.round for r in measured]
            charts[label] = chart.line_chart(numbers, {name: heights}, ("round", name))
    spent = [r.epsilon for r in rounds]
    if any(epsilon is not None for epsilon in spent):
        planned = record.privacy.epsilon_planned
        charts["Epsilon spent, planned coalition's view"] = chart.line_chart(
            x,
            {"spent": spent},
            ("round", "epsilon"),
            limit=None if planned is None else ("planned", planned),
        )
    return page.section("Learning and privacy over the rounds", page.figures(charts))


def _model(record: RunRecord) -> str:
    """Return what was trained and so travelled, and what the task says of it."""
    parts = [page.paragraph(f"SHA-256 of model.pt: {record.model_sha256}")]
    if record.model is not None:
        trained = sum(record.model.trained.values())
        words = f"Only what is trained travels, protected: {trained:,} values."
        if record.model.frozen:
            words += (
                f" {record.model.frozen:,} other values of the model are frozen, public and equal "
                "at all parties."
            )
        rows = [(name, f"{size:,}") for name, size in record.model.trained.items()]
        table = page.table(("parameter", "values"), rows, numbers=frozenset({1}))
        facts = [(name, str(value)) for name, value in record.model.about.items()]
        about = page.table(("of the model", ""), facts) if facts else ""
        parts = [*parts, about, page.paragraph(words), page.folded("What is trained", table)]
    return page.section("Model", *parts)


def _cost(rounds: tuple[RoundRecord, ...]) -> str:
    if not rounds:
        return ""
    x = [r.round for r in rounds]
    # Stages in the order of the pipeline, which is the order in which they were first timed.
    stages = dict.fromkeys(stage for r in rounds for stage in r.seconds)
    layers = {stage: [r.seconds.get(stage, 0.0) for r in rounds] for stage in stages}
    charts = {}
    if layers:
        charts["Seconds per round by stage"] = chart.stacked_columns(x, layers, ("round", "s"))
    sent = [r.bytes_sent / _MIB for r in rounds]
    received = [r.bytes_received / _MIB for r in rounds]
    charts["Bytes at the transport per round, all parties"] = chart.line_chart(
        x, {"sent": sent, "received": received}, ("round", "MiB")
    )
    peak_bytes = max(record.peak_rss_bytes for record in rounds)
    peak = page.paragraph(f"Peak memory of the party that wrote this: {bytes_text(peak_bytes)}.")
    return page.section("Time and bytes", page.figures(charts), peak, *_overhead(rounds))


def _overhead(rounds: tuple[RoundRecord, ...]) -> tuple[str, ...]:
    """Return what each stage took, and what protection took of it."""
    costs = overhead.stage_costs([r.seconds for r in rounds])
    if not costs:
        return ()
    rows = [
        (cost.stage, *_cost_cells(cost), "protection" if cost.is_protection else "learning")
        for cost in costs
    ]
    rows.append(("all of protection", *_cost_cells(overhead.protection(costs)), "protection"))
    headings = ("stage", "seconds, median round", "% of training", "what it is for")
    words = (
        "Stages of learning are those that plain federated averaging has as well; all others are "
        "the price of protection. Where parties meet (agree, aggregate, open), the wait for the "
        "slowest one is counted too."
    )
    table = page.table(headings, rows, numbers=frozenset({1, 2}))
    return page.paragraph(words), table


def _cost_cells(cost: overhead.StageCost) -> tuple[str, str]:
    return seconds_text(cost.seconds), overhead.percent_text(cost.percent)


def _privacy(record: RunRecord) -> str:
    privacy = record.privacy
    if privacy.unit == "none":
        return page.section("Privacy", page.note(threat_model.noise_words("none"), bad=True))
    rows = [
        (name, epsilon_text(_view(privacy, field)), meaning)
        for field, name, meaning in threat_model.EPSILON_VIEWS
    ]
    guarantee = (
        f"unit {privacy.unit}, delta {_number(privacy.delta)}, mechanism {privacy.mechanism}, "
        f"accountant {privacy.accountant}, neighboring relation {privacy.neighboring_relation}"
    )
    return page.section(
        "Privacy spent, by who looks",
        page.table(("view", "epsilon", "what it means"), rows),
        page.paragraph(f"The guarantee: {guarantee}. Epsilons are rounded up."),
        page.table(
            ("party", "epsilon by its own ledger"),
            [(name, epsilon_text(spent)) for name, spent in record.epsilon_by_party.items()],
        )
        if record.epsilon_by_party
        else "",
    )


def _view(privacy: PrivacyRecord, field: str) -> float | None:
    value: float | None = getattr(privacy, field)
    return value


def _threats(record: RunRecord) -> str:
    return page.section(
        "Threat model",
        page.subsection("Adversary", page.paragraph(threat_model.ADVERSARY)),
        page.subsection(f"Backend {record.backend}", *map(page.paragraph, _backend_words(record))),
        page.subsection("Noise", page.paragraph(_noise_words(record))),
        page.subsection("Out of scope", page.bullets(threat_model.OUT_OF_SCOPE)),
    )


def _backend_words(record: RunRecord) -> list[str]:
    aggregation = record.job.get("aggregation")
    custody = aggregation.get("custody") if isinstance(aggregation, Mapping) else None
    neighbors = threat_model.neighbors_of(record.job)
    threshold = threat_model.threshold_of(record.job)
    words = [threat_model.backend_words(record.backend, custody, neighbors, threshold)]
    if threat_model.has_custody(record.backend):
        privacy = record.privacy
        words.append(threat_model.broken_words(privacy.unit, privacy.epsilon_own_share))
    return words


def _noise_words(record: RunRecord) -> str:
    privacy = record.job.get("privacy")
    placement = privacy.get("placement") if isinstance(privacy, Mapping) else None
    return threat_model.noise_words(record.privacy.unit, placement or "distributed")


def _mapping(title: str, empty: str, mapping: Mapping[str, Any]) -> str:
    if not mapping:
        return page.section(title, page.paragraph(empty))
    rows = [(key, _value(value)) for key, value in _flatten("", mapping)]
    return page.section(title, page.table(("key", "value"), rows))


def _flatten(prefix: str, mapping: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        rows += _flatten(f"{name}.", value) if isinstance(value, Mapping) else [(name, value)]
    return rows


def _rounds(rounds: tuple[RoundRecord, ...]) -> str:
    headings = ("round", "attempt", "epsilon", "accuracy", "loss", "time", "sent", "parties")
    rows = [
        (
            str(r.round),
            str(r.attempt),
            "-" if r.epsilon is None else epsilon_text(r.epsilon),
            _number(r.accuracy),
            _number(r.loss),
            seconds_text(sum(r.seconds.values())),
            bytes_text(r.bytes_sent),
            ", ".join(r.parties),
        )
        for r in rounds
    ]
    return page.section("Every round", page.table(headings, rows))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, default=str)
