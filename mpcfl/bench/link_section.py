"""The section of a benchmark page on links: charts, cross-overs, and what the kernel counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpcfl.bench import link_figures
from mpcfl.bench import report_words as words
from mpcfl.bench.case_numbers import CaseNumbers, Cases, networks
from mpcfl.bench.crossover import LinkStudy
from mpcfl.bench.link_figures import MOST_PANELS
from mpcfl.bench.report_figures import Looks
from mpcfl.bench.report_sections import folding
from mpcfl.bench.summary import BASELINE
from mpcfl.bench.tables import CROSSOVER_HEADINGS, LINK_HEADINGS, crossover_cells, link_rows
from mpcfl.report import page
from mpcfl.report.units import bytes_text


def links_section(cases: Cases, studies: Sequence[LinkStudy], looks: Looks) -> str:
    """Return the charts against the link's rate, the cross-overs and the measured links."""
    rows = link_rows(cases)
    if not rows:
        return ""
    parts = []
    if studies:
        parts += [page.paragraph(words.CROSSOVERS), *_link_charts(studies, looks)]
        parts += _crossover_lists(studies)
    title = "What TCP delivers on the empty links; medians and quartiles over launches"
    measured = page.figure(title, link_figures.network_chart(title, networks(cases.records)))
    parts += [page.subsection("Links as measured", measured, page.table(LINK_HEADINGS, rows))]
    kernel = _kernel_rows(cases.measured)
    if kernel:
        headings = (
            "case",
            "payload",
            "with headers",
            "kernel",
            "kernel over payload",
            "over headers",
        )
        table = page.table(headings, kernel, numbers=frozenset(range(1, len(headings))))
        shown = table if len(kernel) <= 20 else page.folded(f"All {len(kernel)} cases", table)
        note = page.paragraph(f"{words.KERNEL_BYTES} {_all_kernel_bytes(cases.measured)}")
        parts.append(page.subsection("Bytes that the kernel counted, per sum", note, shown))
    return page.section("Links and cross-overs", *parts, anchor="links")


def _link_charts(studies: Sequence[LinkStudy], looks: Looks) -> list[str]:
    shown = [
        (study, round_trip_ms)
        for study in sorted(studies, key=_study_order)
        for round_trip_ms in study.round_trips_s
    ][: 3 * MOST_PANELS]
    charts = {}
    for start in range(0, len(shown), MOST_PANELS):
        part = shown[start : start + MOST_PANELS]
        number = start // MOST_PANELS
        title = "Time against link rate" + (f", chart {number + 1}" if number else "")
        title += "; a circle where another protected backend becomes the fastest"
        charts[title] = link_figures.link_chart(title, part, looks)
    return folding(charts, 1)


def _study_order(study: LinkStudy) -> tuple[int, int, int]:
    p = study.variants[0].parameters
    return (-len(study.variants), p.parties, -p.dim)


def _crossover_lists(studies: Sequence[LinkStudy]) -> list[str]:
    parts = []
    ordered = sorted(studies, key=_study_order)
    for number, study in enumerate(study for study in ordered if study.crossovers):
        p = study.variants[0].parameters
        title = f"{p.parties} parties, dim {p.dim:,}, b = {p.modulus_bits}, {p.dtype}"
        table = page.table(
            ("round trip", *CROSSOVER_HEADINGS),
            [(f"{c.round_trip_ms:g} ms", *crossover_cells(c)) for c in study.crossovers],
        )
        sentences = page.bullets(crossover_sentences(study))
        if number == 0:
            folded = page.folded(f"All {len(study.crossovers)} pairs: {title}", table)
            parts.append(page.subsection(f"Cross-overs: {title}", sentences, folded))
        else:
            parts.append(page.folded(f"Cross-overs: {title}", sentences, table))
    return parts


def crossover_sentences(study: LinkStudy) -> list[str]:
    """Return how each variant stands to the fastest protected one in shared memory."""
    protected = [v for v in study.variants if v.parameters.backend != BASELINE]
    sentences: list[str] = []
    for round_trip_ms in study.round_trips_s:
        known = [variant for variant in protected if variant.tells(round_trip_ms)]
        if not known:
            continue
        leader = min(known, key=lambda variant: variant.model.compute_s).parameters
        delay = f" at {round_trip_ms:g} ms of round trip" if round_trip_ms else ""
        same = [
            c
            for c in study.crossovers
            if c.round_trip_ms == round_trip_ms and leader in (c.first, c.second)
        ]
        sentences += [c.sentence for c in same if not (c.sure and c.first == leader)]
        beaten = [c.second.variant for c in same if c.sure and c.first == leader]
        if beaten:
            never = f"Never beating {leader.variant}{delay}, at any link rate: "
            sentences.append(never + "; ".join(beaten))
    return sentences


def _kernel_rows(cases: Iterable[CaseNumbers]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for case in cases:
        link = case.link
        if link is None or link.kernel_bytes is None or link.payload_bytes == 0:
            continue
        rows.append(
            (
                case.parameters.case,
                bytes_text(link.payload_bytes),
                bytes_text(link.framed_bytes),
                bytes_text(link.kernel_bytes),
                f"{link.kernel_bytes / link.payload_bytes:.3f}",
                f"{link.kernel_bytes / link.framed_bytes - 1:+.1%}",
            )
        )
    return rows


def _all_kernel_bytes(cases: Iterable[CaseNumbers]) -> str:
    """Return the sum over all cases in words."""
    links = [case.link for case in cases if case.link is not None]
    payload = framed = kernel = 0.0
    for link in links:
        if link.kernel_bytes is not None:
            payload += link.payload_bytes
            framed += link.framed_bytes
            kernel += link.kernel_bytes
    return (
        f"All cases together: {bytes_text(payload)} of payload, {bytes_text(framed)} with the "
        f"headers of its packets, {bytes_text(kernel)} counted by the kernel "
        f"({kernel / framed - 1:+.1%})."
    )
