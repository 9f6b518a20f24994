"""The page of `mpcfl plan`: sentences for a privacy officer first, numbers for experts last."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mpcfl.config import Job, Unit
from mpcfl.dp.noise_plan import NoisePlan, View
from mpcfl.launch import plan_words as words
from mpcfl.launch.mask_graph import graph_of_job, graph_words
from mpcfl.launch.plan_figures import MissingRow, missing_rows, paid_rounds, view_epsilons
from mpcfl.report.threat_model import OUT_OF_SCOPE
from mpcfl.report.units import epsilon_text

# Longer lines are hard to read, however wide the window is.
_MOST_COLUMNS = 100
# Above this, most of the noise pays for the coarse grid and not for privacy.
_POOR_INFLATION = 2.0


def print_page(console: Console, job: Job, plan: NoisePlan) -> None:
    """Print the plan of a job as a page."""
    page = _Page(console)
    page.text(words.promise(job))
    if plan.unit is Unit.NONE:
        _masks(page, job)
        page.numbers("The grid", _grid_numbers(plan))
        page.fingerprint(plan)
        return
    rounds = paid_rounds(plan)
    epsilons = view_epsilons(plan, rounds)
    page.section("Who is protected", words.protected(job, plan))
    page.section("What the figure means", words.meaning(plan, epsilons[View.COALITION]))
    page.section("Against whom", words.against(plan))
    page.add(_views(plan, epsilons))
    page.section("If parties are missing", words.missing(plan))
    rows = missing_rows(plan, rounds)
    if rows:
        page.add(_missing_table(rows))
    _masks(page, job)
    page.section("The noise", words.noise(job, plan))
    if plan.rounding_inflation > _POOR_INFLATION:
        page.text(
            f"Rounding to {plan.modulus_bits} bits costs more noise than the budget does: "
            "use more modulus_bits."
        )
    page.section("How it is counted", words.accounting(plan))
    page.section("What is not covered", ())
    page.bullets((*words.not_covered(job, plan), *OUT_OF_SCOPE))
    page.numbers("For experts", [*_noise_numbers(plan), *_grid_numbers(plan)])
    page.fingerprint(plan)


class _Page:
    """A console with one width and one indent for all that is printed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._width = min(console.width, _MOST_COLUMNS)

    def add(self, item: Table | Text) -> None:
        """Print an item below the heading."""
        self._console.print(
            Padding(item, (0, 0, 0, 2), expand=False), width=self._width, highlight=False
        )

    def text(self, sentence: str) -> None:
        """Print a sentence from the left edge on; it is never broken where nobody looks on."""
        folded = self._console.is_terminal
        width = self._width if folded else None
        self._console.print(Text(sentence), width=width, highlight=False, soft_wrap=not folded)

    def section(self, heading: str, paragraphs: Iterable[str]) -> None:
        """Print a heading and its paragraphs."""
        self._console.print()
        self._console.print(Text(heading, style="bold"), width=self._width)
        for paragraph in paragraphs:
            self.add(Text(paragraph))

    def bullets(self, sentences: Iterable[str]) -> None:
        """Print a list."""
        table = Table.grid(padding=(0, 1))
        for sentence in sentences:
            table.add_row("-", Text(sentence))
        self.add(table)

    def numbers(self, heading: str, rows: Iterable[tuple[str, str, str]]) -> None:
        """Print a table of names, values and what they are."""
        self.section(heading, ())
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for row in rows:
            table.add_row(*row)
        self.add(table)

    def fingerprint(self, plan: NoisePlan) -> None:
        """Print the hash that the parties compare, on lines of its own."""
        self.section(
            "Fingerprint", ("All parties compare this fingerprint before the first round.",)
        )
        self.add(Text(plan.fingerprint()))


def _masks(page: _Page, job: Job) -> None:
    graph = graph_of_job(job)
    if graph is not None:
        private = job.privacy.unit is not Unit.NONE
        page.section("Who shares masks with whom", graph_words(graph, private))


def _views(plan: NoisePlan, epsilons: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("view", no_wrap=True)
    table.add_column("epsilon", justify="right", no_wrap=True)
    table.add_column("odds", justify="right", no_wrap=True)
    table.add_column("who it is")
    for view, epsilon in epsilons.items():
        table.add_row(view, epsilon_text(epsilon), words.odds(epsilon), words.viewer(plan, view))
    return table


def _missing_table(rows: list[MissingRow]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("missing", "in the sum", "epsilon"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    last_planned = max(row.missing for row in rows if row.opened)
    for row in rows:
        verdict = "opened" if row.opened else "refused: the sum is not opened"
        if row.missing == last_planned:
            verdict = "opened; the noise is sized for this"
        table.add_row(str(row.missing), str(row.contributors), epsilon_text(row.epsilon), verdict)
    return table


def _noise_numbers(plan: NoisePlan) -> list[tuple[str, str, str]]:
    rows = [
        ("mechanism", plan.mechanism, "kind of noise, drawn exactly on the integers"),
        ("noise multiplier", f"{plan.noise_multiplier:.5f}", "sigma over sensitivity, coalition"),
        ("local sigma", f"{plan.local_sigma}", "each party's noise, in levels of the grid"),
        ("norm bound", f"{plan.norm_bound_int}", "largest squared integer norm of one row"),
        ("clip norm", f"{plan.clip_norm:g}", "L2 bound on one row, in units of the model"),
        ("releases", f"{plan.releases_per_round} per round", f"{_releases(plan)} in all"),
        ("wrap bound", f"{plan.wrap_probability:.2g}", "chance that a value of the run wraps"),
        ("rounding", f"{plan.rounding_inflation:.5f}", "sensitivity after rounding over before"),
        ("overhead", f"{plan.overhead_vs_central:.4f}", "noise over that of a trusted server"),
    ]
    if plan.sample_rate < 1.0:
        rows.append(("sample rate", f"{plan.sample_rate:g}", "secret Poisson sampling of records"))
    if plan.counts:
        note = "level of a secret count of one, in levels of the grid"
        rows.append(("count level", f"{plan.count_level_int}", note))
    affordable = paid_rounds(plan)
    if affordable is not None:
        rows.append(("stops after", f"{affordable} rounds", f"of {plan.rounds}: the budget"))
    return rows


def _releases(plan: NoisePlan) -> str:
    total = (plan.rounds + plan.spare_attempts) * plan.releases_per_round
    spare = f", {plan.spare_attempts} spare attempts included" if plan.spare_attempts else ""
    return f"{total}{spare}"


def _grid_numbers(plan: NoisePlan) -> list[tuple[str, str, str]]:
    length = f"vector of {plan.vector_dim} integers" if plan.vector_dim != plan.dim else ""
    return [
        ("dimension", f"{plan.dim}", length or "coordinates of the model that are trained"),
        ("modulus", f"{plan.modulus_bits} bits", "ring of the secure sum"),
        ("rotation", plan.rotation, "before rounding, in rings of few bits"),
        ("scale", f"{plan.scale:.6g}", "levels of the grid per unit of the model"),
        ("saturation", f"{plan.saturation_int}", "largest level of a party's sum"),
    ]
