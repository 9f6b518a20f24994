"""A run that goes on, as a web page: made on the server, renewed by the page's only script.

The page comes from one address, and loads nothing from any other. The script asks for the part
that changes and puts it in the place of the old one; all text in it was escaped here.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence

from mpcfl.report import live_page_chart, overhead, page
from mpcfl.report import live_state_words as words
from mpcfl.report.live_page_figures import charts
from mpcfl.report.live_state import LiveState
from mpcfl.report.run_record import RoundRecord
from mpcfl.report.units import bytes_text, epsilon_text, seconds_text

_ROWS = 12

_STYLE = """
.status { display: flex; align-items: center; gap: .55rem; font-weight: 600; margin: 0 0 1rem; }
.status i { width: .7rem; height: .7rem; border-radius: 50%; background: var(--series-2); }
.status.preparing i { background: var(--series-0); }
.status.stopped i { background: var(--series-1); }
.status.failed i, .status.interrupted i { background: var(--bad); }
.status.running i { animation: breathe 2s ease-in-out infinite; }
.status small { font-weight: 400; color: var(--muted); font-size: .9rem; }
@keyframes breathe { 50% { opacity: .35; } }
@media (prefers-reduced-motion: reduce) { .status.running i { animation: none; } }
svg.bar { height: .45rem; margin-top: .5rem; border-radius: 4px; background: var(--line); }
svg.bar rect { fill: var(--series-0); } svg.bar.budget rect { fill: var(--series-1); }
svg.bar.cost rect { fill: var(--series-1); }
td svg.bar { margin: .5rem 0 0; min-width: 8rem; }
.chips { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; list-style: none;
  max-width: none; }
.chips li { margin: 0; padding: .25rem .8rem; border-radius: 999px; background: var(--card);
  border: 1px solid var(--line); }
.chips li::before { content: "\\25CF"; color: var(--series-2); margin-right: .45rem; }
.chips li.lost { border-color: var(--bad); color: var(--bad); }
.chips li.lost::before { content: "\\2715"; color: var(--bad); }
.lead { max-width: none; }
#live .cards { grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.figures figcaption svg { display: inline-block; width: .8rem; height: .8rem;
  margin: 0 .3rem 0 .9rem; vertical-align: -.08rem; }
td { font-variant-numeric: tabular-nums; }
.away main { opacity: .55; }
#away { display: none; }
.away #away { display: block; }
"""
# What is asked for again: every second while the run goes on, more rarely once it is over.
_SCRIPT = """
"use strict";
const live = document.getElementById("live");
let shown = live.innerHTML;
const renew = async () => {
  try {
    const answer = await fetch("fragment", {cache: "no-store"});
    const text = await answer.text();
    if (answer.ok && text !== shown) { live.innerHTML = shown = text; }
    document.body.classList.toggle("away", !answer.ok);
  } catch {
    document.body.classList.add("away");
  }
  const facts = live.firstElementChild.dataset;
  document.title = facts.title;
  setTimeout(renew, facts.over === "yes" ? 5000 : 1000);
};
setTimeout(renew, 1000);
"""
_AWAY = "mpcfl serve does not answer any more, or its run's folder is gone; this is old."


def security_policy() -> str:
    """Return the page's Content-Security-Policy: its own script and styles, and no other."""
    styles = " ".join(_hash(style) for style in (page.STYLE, _style()))
    return (
        f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {styles}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _style() -> str:
    return _STYLE + live_page_chart.STYLE


def live_page(state: LiveState) -> str:
    """Return the whole document."""
    parts = (
        f"<style>{_style()}</style>",
        f'<div id="away">{page.note(_AWAY, bad=True)}</div>',
        f'<div id="live">{fragment(state)}</div>',
        f"<script>{_SCRIPT}</script>",
    )
    return page.page(f"mpcfl run: {state.task}", words.title(state), parts)


def fragment(state: LiveState) -> str:
    """Return the part that changes, as one element."""
    over = "yes" if state.phase.is_over else "no"
    title = f"{words.rounds_done(state)}/{state.rounds_planned} {state.task}"
    parts = [_status(state), _cards(state), _notes(state), _parties(state)]
    if state.rounds:
        parts += [charts(state), _stages(state), _rounds(state)]
    return (
        f'<div data-phase="{html.escape(state.phase)}" data-over="{over}" '
        f'data-title="{html.escape(title)}">{"".join(parts)}</div>'
    )


def _status(state: LiveState) -> str:
    kind = state.phase.partition(" ")[0]
    left = words.time_left(state)
    small = f"<small>{html.escape(left)}</small>" if left else ""
    return f'<p class="status {kind}" role="status"><i></i>{html.escape(state.phase)}{small}</p>'


def _notes(state: LiveState) -> str:
    end = words.end_line(state)
    notes = [page.note(end, bad=not state.phase.is_good)] if end else []
    if state.lost:
        notes.append(page.note(words.lost_line(state.lost, state.alive), bad=True))
    return "".join(notes)


def _cards(state: LiveState) -> str:
    done = words.rounds_done(state)
    time = sum(sum(one.seconds.values()) for one in state.rounds)
    cards = [
        _card("rounds", "rounds", words.progress(state), _bar(done, state.rounds_planned)),
        _card("epsilon", "epsilon, of the budget", words.epsilon(state), _budget_bar(state)),
        _card("accuracy", "test accuracy", words.number(state.last("accuracy"))),
        _card("loss", "test loss", words.number(state.last("loss"))),
        _card("parties", "parties taking part", words.alive(state)),
        _card("bytes", "bytes sent, all parties", words.bytes_sent(state)),
        _card("time", "time in the rounds", seconds_text(time) if state.rounds else "-"),
        _card("backend", "backend", state.backend),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(figure: str, label: str, value: str, below: str = "") -> str:
    return (
        f'<div class="card" data-figure="{figure}"><span>{html.escape(label)}</span>'
        f"<strong>{html.escape(value)}</strong>{below}</div>"
    )


def _budget_bar(state: LiveState) -> str:
    if state.epsilon_planned is None or state.epsilon is None:
        return ""
    return _bar(state.epsilon, state.epsilon_planned, "budget")


def _bar(value: float, whole: float, kind: str = "") -> str:
    percent = 100 * min(1.0, value / whole) if whole > 0 else 0.0
    return (
        f'<svg class="bar {kind}" viewBox="0 0 100 4" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect width="{percent:.1f}" height="4"/></svg>'
    )


def _parties(state: LiveState) -> str:
    chips = (
        f'<li class="lost">{html.escape(name)} (lost)</li>'
        if name in state.lost
        else f"<li>{html.escape(name)}</li>"
        for name in state.parties
    )
    return page.section("Parties", f'<ul class="chips">{"".join(chips)}</ul>')


def _stages(state: LiveState) -> str:
    costs = overhead.stage_costs([one.seconds for one in state.rounds])
    longest = max((cost.seconds for cost in costs), default=0.0)
    rows = (_stage_row(cost, longest) for cost in costs)
    head = (
        '<tr><th>stage</th><th>for</th><th class="number">median</th>'
        '<th class="number">% of training</th><th></th></tr>'
    )
    table = (
        f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'
        "</div>"
    )
    line = overhead.overhead_line([one.seconds for one in state.rounds])
    words_below = page.paragraph(f"{line[:1].upper()}{line[1:]}.") if line else ""
    return page.section("Time by stage", table, words_below)


def _stage_row(cost: overhead.StageCost, longest: float) -> str:
    purpose = "protection" if cost.is_protection else "learning"
    bar = _bar(cost.seconds, longest, "cost" if cost.is_protection else "")
    cells = (
        f"<td>{html.escape(cost.stage)}</td><td>{purpose}</td>",
        f'<td class="number">{html.escape(seconds_text(cost.seconds))}</td>',
        f'<td class="number">{overhead.percent_text(cost.percent)}</td><td>{bar}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _rounds(state: LiveState) -> str:
    headings = ("round", "epsilon", "accuracy", "loss", "time", "sent", "parties")
    newest = state.rounds[: -_ROWS - 1 : -1]
    table = page.table(headings, map(_round_row, newest), numbers=frozenset(range(6)))
    return page.section("Newest rounds", table)


def _round_row(one: RoundRecord) -> Sequence[str]:
    return (
        str(one.round),
        "-" if one.epsilon is None else epsilon_text(one.epsilon),
        words.number(one.accuracy),
        words.number(one.loss),
        seconds_text(sum(one.seconds.values())),
        bytes_text(one.bytes_sent),
        ", ".join(one.parties),
    )
