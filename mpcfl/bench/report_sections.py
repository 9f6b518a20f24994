"""The sections of a benchmark page that hold its figures, each with the table that it draws.

What most readers look for stands open: the fastest network, the bits that most cases have. The
rest of a large grid is folded, and what would be more charts than anybody looks at is left to
the tables.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mpcfl.bench import report_figures as figures
from mpcfl.bench import report_words as words
from mpcfl.bench.case_numbers import CaseNumbers, Cases, network_order
from mpcfl.bench.dimension_fit import LINE, DimensionFit, fit_dimensions
from mpcfl.bench.report_figures import Facet, Looks
from mpcfl.report import page
from mpcfl.report.units import seconds_text

# Beyond these, charts of a kind are left out; the tables have their numbers.
_MOST_CHARTS = 12
_MOST_OPEN_CHARTS = 3
_Chart = Callable[[str, Sequence[CaseNumbers], Looks], str]


def time_section(cases: Cases, looks: Looks) -> str:
    """Return the charts of seconds by stage."""
    intro = page.paragraph(
        "One sum, divided by the length of the vector: median and quartiles on a logarithmic axis. "
        "Beside it the share of each stage, and the set-up of a session, which many sums share."
    )
    charts = _totals(cases.measured, "Time per coordinate", figures.time_chart, looks)
    return page.section("Time by backend and stage", intro, *charts, anchor="time")


def traffic_section(cases: Cases, looks: Looks) -> str:
    """Return the charts of bytes by stage."""
    intro = page.paragraph(
        "Payload that all ranks send for one sum, over coordinates and parties, and the share of "
        "each stage. The set-up is what opening the session sends, once."
    )
    # Payload does not depend on the network: one of them says it.
    first = min(map(network_order, (case.parameters for case in cases.measured)))
    chosen = [case for case in cases.measured if network_order(case.parameters) == first]
    charts = _totals(chosen, "Bytes per coordinate", figures.bytes_chart, looks)
    return page.section("Bytes by backend and stage", intro, *charts, anchor="traffic")


def memory_section(cases: Cases, looks: Looks) -> str:
    """Return the charts of memory, of the longest vectors."""
    first = min(map(network_order, (case.parameters for case in cases.measured)))
    charts: dict[str, str] = {}
    for facet, same in _facets(cases.measured):
        if network_order(same[0].parameters) == first and len(charts) < _MOST_CHARTS:
            dim = max(case.parameters.dim for case in same)
            title = f"Peak memory of the largest rank: {facet.title}, dim {dim:,}"
            chosen = [case for case in same if case.parameters.dim == dim]
            charts[title] = figures.memory_chart(title, chosen, looks)
    return page.section("Memory", page.figures(charts), anchor="memory")


def scaling_section(cases: Cases, looks: Looks) -> str:
    """Return the charts of seconds against length and parties, with the fitted models."""
    cores = cases.records[0].machine.cores
    fits = fit_dimensions(cases.measured, cores)
    drawers: dict[str, Callable[[], str]] = {}
    for (bits, dtype, link, trip_ms), same in _networks(cases.measured):
        where = f"b = {bits}, {dtype}, {figures.network_text(link, trip_ms)}"
        if len({case.parameters.dim for case in same}) > 1:
            title = f"Time against length: {where}"
            drawers[title] = partial(figures.dimension_chart, title, same, fits, looks)
        if len({case.parameters.parties for case in same}) > 1:
            title = f"Time against parties: {where}"
            drawers[title] = partial(
                figures.parties_chart, title, same, cases.measured, cores, looks
            )
    if not drawers:
        return ""
    chosen = itertools.islice(drawers.items(), _MOST_CHARTS)
    charts = {title: draw() for title, draw in chosen}
    intro = page.paragraph(
        "Points are medians with quartiles, both axes logarithmic. Thick lines are fitted models; "
        "thin ones join points where there is none."
    )
    fit_table = page.folded("Fitted models", *_fit_table(fits)) if fits else ""
    return page.section(
        "Scaling in length and parties", intro, *folding(charts, 2), fit_table, anchor="scaling"
    )


def equality_section(cases: Cases) -> str:
    """Return what equal results mean, and who can learn what with which backend."""
    parameters = [case.parameters for case in cases.measured]
    parts = [
        page.paragraph(words.EQUALITY),
        page.paragraph(words.EQUALITY_TESTS),
        page.table(
            ("backend", "sums compared", "largest error"),
            words.equality_rows(cases.measured),
            numbers=frozenset({1}),
        ),
        page.subsection(
            "What protects a single input",
            page.table(("backend", "who can learn what"), words.protection_rows(parameters)),
        ),
    ]
    for name in sorted({p.backend for p in parameters}):
        peer = words.peer_words(name)
        if peer is not None:
            security, differences = peer
            text = (page.paragraph(f"Security: {security}"), page.bullets(differences))
            parts.append(page.subsection(f"Peer {name}", *text))
    return page.section("Equal results, and what protects them", *parts, anchor="equality")


def _totals(cases: Sequence[CaseNumbers], what: str, draw: _Chart, looks: Looks) -> list[str]:
    """Return charts of one row per variant; those of the first network and length are open."""
    first = min(map(network_order, (case.parameters for case in cases)))
    shown: dict[str, list[CaseNumbers]] = {}
    others: dict[str, list[CaseNumbers]] = {}
    for facet, same in _facets(cases):
        for number, dim in enumerate(figures.shown_dims(same)):
            is_first = network_order(same[0].parameters) == first and number == 0
            place = shown if is_first and len(shown) < _MOST_OPEN_CHARTS else others
            chosen = [case for case in same if case.parameters.dim == dim]
            place[f"{what}: {facet.title}, dim {dim:,}"] = chosen
    chosen_charts = list(itertools.islice((shown | others).items(), _MOST_CHARTS))
    charts = {title: draw(title, chosen, looks) for title, chosen in chosen_charts}
    return folding(charts, len(shown))


def _facets(cases: Iterable[CaseNumbers]) -> list[tuple[Facet, list[CaseNumbers]]]:
    """Return cases by facet: fast networks first, and in them the bits that most cases have."""
    groups: dict[Facet, list[CaseNumbers]] = {}
    for case in cases:
        groups.setdefault(Facet.of(case.parameters), []).append(case)
    common = Counter((f.modulus_bits, f.dtype) for f, same in groups.items() for _ in same)

    def order(entry: tuple[Facet, list[CaseNumbers]]) -> tuple[object, ...]:
        facet, same = entry
        bits = (facet.modulus_bits, facet.dtype)
        return (network_order(same[0].parameters), -common[bits], bits, facet.parties)

    return sorted(groups.items(), key=order)


def _networks(
    cases: Iterable[CaseNumbers],
) -> list[tuple[tuple[int, str, str, float], list[CaseNumbers]]]:
    groups: dict[tuple[int, str, str, float], list[CaseNumbers]] = {}
    for facet, same in _facets(cases):
        key = (facet.modulus_bits, facet.dtype, facet.link, facet.round_trip_ms)
        groups.setdefault(key, []).extend(same)
    return list(groups.items())


def folding(charts: dict[str, str], n_open: int) -> list[str]:
    """Return wide charts, all after the first ones behind one click."""
    framed = [page.figure(title, svg) for title, svg in charts.items()]
    shown, hidden = framed[:n_open], framed[n_open:]
    more = f"{len(hidden)} more chart{'s' if len(hidden) > 1 else ''}"
    return [*shown, page.folded(more, *hidden)] if hidden else shown


def _fit_table(fits: Sequence[DimensionFit]) -> list[str]:
    rows = []
    for fit in fits:
        p = fit.parameters
        line = fit.start_s is not None and fit.per_coordinate_s is not None
        terms = ("-", "-")
        if fit.start_s is not None and fit.per_coordinate_s is not None:
            terms = (seconds_text(fit.start_s), seconds_text(fit.per_coordinate_s))
        lengths = f"{min(fit.dims):,} to {max(fit.dims):,}"
        model = fit.model if line else f"{fit.model} of all masked cells"
        workload = (p.variant, str(p.parties), str(p.modulus_bits), p.dtype, p.network)
        rows.append((*workload, lengths, model, *terms, f"{fit.largest_error:.0%}"))
    note = (
        f'The model "{LINE}" is start + per coordinate x length, of its own for each row. The cost '
        "model counts what the protocol does and has one set of rates for all its rows. The error "
        "is the largest relative one at a measured length."
    )
    headings = (
        "backend", "parties", "bits", "dtype", "network", "lengths", "model", "start",
        "per coordinate", "largest error",
    )  # fmt: skip
    return [page.paragraph(note), page.table(headings, rows, numbers=frozenset({7, 8, 9}))]
