"""The page of `mpcfl audit inversion`: the pictures side by side, and what they do not show.

One self-contained HTML file without scripts. Pictures are SVG squares in the ink of the page,
so that they follow its light or dark colors.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from mpcfl.audit.gradient_matching import Reals
from mpcfl.audit.inversion import InversionReport, Reconstruction, psnr_db
from mpcfl.audit.verdict import CAVEAT
from mpcfl.report import page
from mpcfl.report.atomic import write_atomically

_SIDE = 8
# In units of one pixel of a digit.
_GAP = 1.5
_LABEL_WIDTH = 20
_ROW_HEIGHT = _SIDE + _GAP
# Pixels fainter than this are not drawn.
_FAINT = 0.02
_EXPLANATION = {
    "bare-update": "Bare update",
    "sum-without-noise": "Sum, no noise",
    "wire": "Masked vector",
    "opened-sum": "Opened noisy sum",
}


def write_inversion_report(report: InversionReport, path: Path) -> None:
    """Write the page; an older one is replaced as a whole."""
    write_atomically(path, inversion_page(report))


def inversion_page(report: InversionReport) -> str:
    """Return the page as text.

    Privacy: it shows records, so only ever those of a public data set.
    """
    batch = len(report.originals)
    lead = (
        f"One attacker, the same effort, four vectors: what becomes of {batch} handwritten digits "
        "of one party."
    )
    failed = [finding.detail for finding in report.verdict.findings if not finding.passed]
    verdict = (
        "The attack reads the digits out of what is bare, and fails on what is protected."
        if report.passed
        else "This is not as it should be: " + "; ".join(failed) + "."
    )
    parts = [
        page.cards(_headline(report)),
        page.note(verdict, bad=not report.passed),
        page.section("Originals and reconstructions", _figure(report)),
        page.section("Errors", _table(report)),
        page.section("What was attacked", page.bullets(_vectors(report))),
        page.section("How to read this", page.bullets(_reading(report))),
    ]
    return page.page("mpcfl audit: gradient inversion", lead, parts)


def _headline(report: InversionReport) -> dict[str, str]:
    cards = {
        f"error, {_EXPLANATION[one.name].lower()}": f"{one.mse:.4f}"
        for one in report.reconstructions
    }
    return cards | {"error of guessing the mean": f"{report.baseline_mse:.4f}"}


def _figure(report: InversionReport) -> str:
    rows = [("Original", "never leaves the party", report.originals)]
    rows += [(_EXPLANATION[o.name], f"error {o.mse:.4f}", o.images) for o in report.reconstructions]
    picture = digits_picture(rows)
    return page.figures({"One row per vector, one column per record of the party": picture})


def digits_picture(rows: Sequence[tuple[str, str, Reals]]) -> str:
    """Draw rows of digits with their labels.

    Args:
        rows: label, second label and images, shape (k, 64), in [0, 1]; 1 is ink.

    Returns:
        One ``<svg>`` element without any address.
    """
    n_columns = max(len(images) for _, _, images in rows)
    width = _LABEL_WIDTH + n_columns * (_SIDE + _GAP)
    height = len(rows) * _ROW_HEIGHT
    parts = [
        f'<svg role="img" viewBox="0 0 {width:g} {height:g}" style="max-width: {12 * width:.0f}px" '
        'shape-rendering="crispEdges" fill="var(--ink)">'
        "<title>Original and reconstructed digits</title>"
    ]
    for number, (label, second, images) in enumerate(rows):
        top = number * _ROW_HEIGHT
        parts.append(
            f'<text x="0" y="{top + 3.9:g}" font-size="1.6">{html.escape(label)}</text>'
            f'<text x="0" y="{top + 6.2:g}" font-size="1.4" fill="var(--muted)">'
            f"{html.escape(second)}</text>"
        )
        for column, image in enumerate(images):
            parts.append(_digit(image, _LABEL_WIDTH + column * (_SIDE + _GAP), top))
    return "".join([*parts, "</svg>"])


def _digit(image: Reals, left: float, top: float) -> str:
    """Draw one digit, a square per pixel, with a thin frame."""
    frame = (
        f'<rect x="{left:g}" y="{top:g}" width="{_SIDE}" height="{_SIDE}" fill="none" '
        'stroke="var(--line)" stroke-width="0.15"/>'
    )
    squares = [
        f'<rect x="{left + index % _SIDE:g}" y="{top + index // _SIDE:g}" width="1" height="1" '
        f'fill-opacity="{ink:.2f}"/>'
        for index, ink in enumerate(image.tolist())
        if ink >= _FAINT
    ]
    return "".join([*squares, frame])


def _table(report: InversionReport) -> str:
    headings = ("vector", "records in it", "error", "PSNR", "misfit", "outcome")
    outcomes = [finding.passed for finding in report.verdict.findings]
    # In the order of the findings.
    rows = [_row(one, report.baseline_mse) for one in report.reconstructions]
    failed = frozenset(number for number, passed in enumerate(outcomes) if not passed)
    guess = ("guess: mean of public images", "-", f"{report.baseline_mse:.5f}")
    baseline = (*guess, _decibels(report.baseline_mse), "-", "-")
    return page.table(headings, [*rows, baseline], failed)


def _row(one: Reconstruction, baseline: float) -> tuple[str, ...]:
    outcome = "better than guessing" if one.mse < baseline else "no better than guessing"
    return (
        one.title,
        str(one.records),
        f"{one.mse:.5f}",
        _decibels(one.mse),
        f"{one.misfit:.1e}",
        outcome,
    )


def _decibels(mse: float) -> str:
    return "exact" if mse == 0 else f"{psnr_db(mse):.1f} dB"


def _vectors(report: InversionReport) -> list[str]:
    settings = report.verdict.settings
    return [
        f"Bare update: the mean gradient of the party's {settings['batch']} records, as federated "
        "learning without protection sends it.",
        f"Sum, no noise: the mean over all {settings['n_parties']} parties, as a secure sum alone "
        "would open it. It is here as a control: a larger number of records does not stop the "
        "attack.",
        "Masked vector: what the party really sends in a round with the crypten backend, read off "
        "its offset, centred in the ring and divided by the scale.",
        f"Opened noisy sum: what the same round opens to everybody, with the noise of a plan for "
        f"epsilon {settings['epsilon']:g} at record level, delta 1e-5, in one round.",
    ]


def _reading(report: InversionReport) -> list[str]:
    effort = report.verdict.settings["effort"]
    return [
        "The attacker knows the model, the plan and the number of records, guesses the labels from "
        "the vector and moves images until their gradient fits, from "
        f"{effort['restarts']} random starts with up to {effort['iterations']} steps of L-BFGS.",
        "The error is the mean square per pixel, pixels from 0 to 1, after the best assignment of "
        "images to originals; PSNR is the same in decibels. The misfit is one minus the cosine "
        "between the vector and the gradient of the attacker's images: 0 is a perfect fit.",
        f"{CAVEAT} Other attacks may do better than this one; what holds against all of them is "
        "the epsilon of the plan, under the assumptions in docs/privacy.md.",
    ]
