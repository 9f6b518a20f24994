"""One self-contained HTML page: no script, no address outside the file, light and dark.

Each function returns HTML. Whatever is given as text is escaped here, so that a party's
or a file's name can't become markup; only what another function of this module or of
`chart.py` returned may be given as a part.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1d2430; --muted: #5b6573; --line: #d5dae1;
  --accent: #0a64a4; --bad: #b3261e; --bad-soft: #fbeae9;
  --series-0: #0a64a4; --series-1: #c25a00; --series-2: #00805f; --series-3: #a8437f;
  --series-4: #7a6a00; --series-5: #4a90c4; --series-6: #7d4cc2; --series-7: #6b7280;
  --part-0: #39465a; --part-1: #8593a8; --part-2: #c4ccd8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1a2029; --ink: #e6e9ee; --muted: #9aa5b4; --line: #323b48;
    --accent: #6bb3ee; --bad: #ff8a80; --bad-soft: #3a2122;
    --series-0: #6bb3ee; --series-1: #f29b4b; --series-2: #3fc29a; --series-3: #e58cc0;
    --series-4: #d9c53f; --series-5: #9ccbee; --series-6: #b998f0; --series-7: #a3adba;
    --part-0: #dbe2ec; --part-1: #8fa0b8; --part-2: #4d5b70;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
main.wide { max-width: 78rem; }
.wide p:not(.note), .wide ul { max-width: 62rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .4rem 0; max-width: 46rem; overflow-wrap: anywhere; }
ul { max-width: 46rem; padding-left: 1.2rem; }
li { margin: .35rem 0; }
.lead { color: var(--muted); margin-bottom: 1.5rem; }
.cards { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.card, figure, .scroll, .note {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.card { padding: .9rem 1.1rem; }
.card span { display: block; color: var(--muted); font-size: .85rem; }
.card strong { display: block; font-size: 1.5rem; font-weight: 650; line-height: 1.3;
  overflow-wrap: anywhere; }
.figures { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); }
figure { margin: 0; padding: 1rem; }
figcaption { font-size: .9rem; color: var(--muted); margin-bottom: .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
  sans-serif !important; }
.note { border-left: 4px solid var(--accent); padding: .6rem 1rem; margin: 1rem 0;
  max-width: none; }
.note.bad { border-left-color: var(--bad); background: var(--bad-soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
td:last-child { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
.figures + p, .scroll + p { margin-top: .75rem; }
section > figure, details > figure, section > .figures, section > .scroll { margin-top: .75rem; }
.figures svg { max-width: 42rem; margin: 0 auto; }
.wide table { font-size: .82rem; }
.wide th, .wide td { padding: .4rem .42rem; }
.wide th { white-space: normal; vertical-align: bottom; }
.wide td:last-child { min-width: 9rem; }
td.number, th.number { text-align: right; }
details { margin: .75rem 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: 0 1rem; }
details[open] { padding-bottom: 1rem; }
summary { cursor: pointer; padding: .6rem 0; color: var(--accent); font-weight: 600;
  font-size: .95rem; }
details figure, details .scroll { border-color: var(--line); }
details h3:first-of-type { margin-top: .25rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 0 0 1.25rem; font-size: .92rem; }
nav a { color: var(--accent); text-decoration: none; }
nav a:hover { text-decoration: underline; }
tbody tr:last-child td { border-bottom: 0; }
tr.failed td { color: var(--bad); }
"""


def page(title: str, lead: str, parts: Iterable[str], *, wide: bool = False) -> str:
    """Return the whole document; ``wide`` for pages of tables with many columns."""
    main = '<main class="wide">' if wide else "<main>"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{main}\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str, anchor: str = "") -> str:
    """Return a heading with what stands under it; `contents` leads to its anchor."""
    name = f' id="{html.escape(anchor)}"' if anchor else ""
    return f"<section{name}>\n<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def contents(anchors: Mapping[str, str]) -> str:
    """Return a line of links to sections of this page, anchor to title."""
    links = (
        f'<a href="#{html.escape(anchor)}">{html.escape(title)}</a>'
        for anchor, title in anchors.items()
    )
    return "<nav>" + "".join(links) + "</nav>"


def folded(title: str, *parts: str, opened: bool = False) -> str:
    """Return parts that a click on the title shows; without a script."""
    state = " open" if opened else ""
    return (
        f"<details{state}>\n<summary>{html.escape(title)}</summary>\n"
        + "\n".join(parts)
        + "\n</details>"
    )


def figure(caption: str, svg: str) -> str:
    """Return one chart that takes the whole width."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"


def subsection(title: str, *parts: str) -> str:
    """Return a smaller heading with what stands under it."""
    return f"<h3>{html.escape(title)}</h3>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    """Return one paragraph of text."""
    return f"<p>{html.escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    """Return a list of sentences."""
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def note(text: str, *, bad: bool = False) -> str:
    """Return a sentence in a box; ``bad`` for what the reader must not miss."""
    return f'<p class="note{" bad" if bad else ""}">{html.escape(text)}</p>'


def cards(figures: Mapping[str, str]) -> str:
    """Return the headline numbers, label to value."""
    boxes = (
        f'<div class="card"><span>{html.escape(label)}</span>'
        f"<strong>{html.escape(value)}</strong></div>"
        for label, value in figures.items()
    )
    return '<div class="cards">' + "".join(boxes) + "</div>"


def figures(charts: Mapping[str, str]) -> str:
    """Return charts side by side where there is room, caption to ``<svg>``."""
    framed = (figure(caption, svg) for caption, svg in charts.items())
    return '<div class="figures">' + "".join(framed) + "</div>"


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    failed: frozenset[int] = frozenset(),
    numbers: frozenset[int] = frozenset(),
) -> str:
    """Return a table.

    Args:
        headings: of the columns.
        rows: as many texts each.
        failed: rows that are shown as failures.
        numbers: columns that are aligned as numbers are.
    """
    tags = [' class="number"' if i in numbers else "" for i in range(len(headings))]
    head = "".join(
        f"<th{tag}>{html.escape(heading)}</th>" for tag, heading in zip(tags, headings, strict=True)
    )
    body = "".join(
        ('<tr class="failed">' if number in failed else "<tr>")
        + "".join(f"<td{t}>{html.escape(cell)}</td>" for t, cell in zip(tags, row, strict=True))
        + "</tr>\n"
        for number, row in enumerate(rows)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>"
    )
