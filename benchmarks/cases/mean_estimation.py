"""Distributed mean estimation: discrete noise in rings of few bits against a trusted server.

    python benchmarks/cases/mean_estimation.py                    # the whole grid, under a minute
    python benchmarks/cases/mean_estimation.py --plot curves.svg  # the same as curves (matplotlib)
    python benchmarks/cases/mean_estimation.py --smoke --json     # a few seconds

Each of n parties holds a vector of length 10 in 250 dimensions; one sum is opened at delta 1e-5.
Reported is the mean squared error of the mean over that of the central Gaussian mechanism of the
same epsilon, whose error is known in closed form: 1 means that nothing is lost by not trusting a
server. Everything goes through the real path: rotation, conditional rounding, exact noise, ring.

A cell comes from `make_plan` (one party may collude, no value leaves the ring but with probability
2^-40) wherever that finds a plan. Where it refuses, the cell is marked ``*`` and made as in the
papers (Kairouz, Liu, Steinke 2021; Agarwal, Kairouz, Liu 2021): everybody honest, and the sum may
leave the ring by chance, since it is sized for k = 2 standard deviations only.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp import NoisePlan, discrete_gaussian_epsilon, make_plan, quantize_rows, skellam_epsilon
from mpcfl.dp.gaussian_curve import curve_mu
from mpcfl.dp.grid import round_grid
from mpcfl.dp.quantize import dequantize_sum
from mpcfl.dp.sampler import draw_discrete_gaussian
from mpcfl.dp.skellam import draw_skellam
from mpcfl.errors import PlanError
from mpcfl.hazmat.bits import BitSource, SystemBits

DIM, NORM, DELTA = 250, 10.0, 1e-5
PADDED = 256
MECHANISMS = ("discrete-gaussian", "skellam")
# Standard deviations that the ring has room for where the planner refuses (dme_run.py: k = 2).
DEVIATIONS = 2.0
# Integer sigmas of one share that are tried there; the best one is taken.
SIGMAS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BISECTIONS = 50


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of the grid, and what was measured in it.

    Attributes:
        source: "plan", or "k=2" where no plan exists.
        ratio: mean squared error over that of the central Gaussian; None if nothing fits.
        error: standard error of the ratio.
        wrapped: fraction of the coordinates that left the ring.
    """

    parties: int
    bits: int
    epsilon: float
    mechanism: str
    source: str
    local_sigma: int
    ratio: float | None
    error: float
    wrapped: float

    def text(self) -> str:
        """Return the ratio, marked if it comes from no plan."""
        if self.ratio is None:
            return "-"
        return f"{self.ratio:.2f}{'*' if self.source != 'plan' else ' '}"


def central_error(parties: int, epsilon: float) -> float:
    """Return the mean squared error of the mean under a trusted server's Gaussian noise."""
    multiplier = 1 / curve_mu(epsilon, DELTA)
    return DIM * (multiplier * NORM / parties) ** 2


def recipe(parties: int, bits: int, epsilon: float, mechanism: str) -> tuple[str, NoisePlan | None]:
    """Return a plan for one cell and where it comes from."""
    try:
        return "plan", make_plan(
            epsilon=epsilon, delta=DELTA, rounds=1, parties=parties, dim=DIM, clip_norm=NORM,
            modulus_bits=bits, mechanism=mechanism, rotation="hadamard",
        )  # fmt: skip
    except PlanError:
        return "k=2", _paper_plan(parties, bits, epsilon, mechanism)


def _paper_plan(parties: int, bits: int, epsilon: float, mechanism: str) -> NoisePlan | None:
    """Return the grid with the least error among those that the ring has k = 2 deviations for."""
    best: tuple[float, int, float] | None = None
    for sigma in SIGMAS:
        allowed = _levels_within(_sensitivity(parties, epsilon, mechanism, sigma))
        room = (2.0 ** (bits - 1) / DEVIATIONS) ** 2 - parties * (sigma**2 + 0.25)
        levels = min(allowed, math.sqrt(max(0.0, room) * PADDED) / parties)
        if levels > 0.0:
            error = (sigma**2 + 1 / 6) / levels**2
            best = min(best or (math.inf, 0, 0.0), (error, sigma, levels))
    if best is None:
        return None
    _, sigma, levels = best
    bound = math.floor(levels**2 + PADDED / 4 + levels + math.sqrt(PADDED) / 2)
    # Fields that sizes rest on are replaced; the views of this plan would mean nothing.
    return replace(
        _template(mechanism),
        parties=parties,
        modulus_bits=bits,
        local_sigma=sigma,
        scale=levels / NORM,
        norm_bound_int=bound,
        saturation_int=math.isqrt(bound),
    )


@cache
def _template(mechanism: str) -> NoisePlan:
    return make_plan(
        epsilon=8.0, delta=DELTA, rounds=1, parties=10, dim=DIM, clip_norm=NORM, modulus_bits=16,
        mechanism=mechanism, rotation="hadamard",
    )  # fmt: skip


def _levels_within(bound: float) -> float:
    """Return the norm in levels of a row that conditional rounding keeps below the bound."""
    rest = bound**2 - PADDED / 4 - math.sqrt(PADDED) / 2
    return math.sqrt(rest + 0.25) - 0.5 if rest > 0.0 else 0.0


@cache
def _sensitivity(parties: int, epsilon: float, mechanism: str, sigma: int) -> float:
    """Return the largest integer sensitivity for which so many honest shares give epsilon."""
    spent: Callable[..., float] = (
        skellam_epsilon if mechanism == "skellam" else discrete_gaussian_epsilon
    )
    low, high = 0.0, 1e3 * sigma * math.sqrt(parties)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        cost = spent(
            l2_sensitivity=middle, local_sigma=sigma, parties=parties, colluding=0, dim=PADDED,
            rounds=1, delta=DELTA,
        )  # fmt: skip
        low, high = (middle, high) if cost <= epsilon else (low, middle)
    return low


def measure(cell: tuple[int, int, float, str], repeats: int) -> Cell:
    """Estimate the mean ``repeats`` times, from fresh vectors with fresh noise."""
    parties, bits, epsilon, mechanism = cell
    source, plan = recipe(parties, bits, epsilon, mechanism)
    if plan is None:
        return Cell(parties, bits, epsilon, mechanism, source, 0, None, 0.0, 0.0)
    trials = [_trial(plan, round_id) for round_id in range(repeats)]
    ratios = np.array([error for error, _ in trials]) / central_error(parties, epsilon)
    return Cell(
        parties=parties,
        bits=bits,
        epsilon=epsilon,
        mechanism=mechanism,
        source=source,
        local_sigma=plan.local_sigma,
        ratio=float(ratios.mean()),
        error=float(ratios.std() / math.sqrt(repeats)),
        wrapped=float(np.mean([wrapped for _, wrapped in trials])),
    )


def _trial(plan: NoisePlan, round_id: int) -> tuple[float, float]:
    """Return the squared error of one estimated mean, and the fraction of wrapped coordinates."""
    bits, grid = SystemBits(), round_grid(plan, round_id)
    rows = _vectors(plan.parties, bits)
    levels = quantize_rows(rows * (1 - 1e-9), grid, None, bits)
    draw = _SAMPLERS[plan.mechanism]
    noise = draw(plan.local_sigma, levels.size, bits).reshape(levels.shape)
    total = (levels + noise).sum(axis=0)
    half = 1 << (plan.modulus_bits - 1)
    opened = (total + half) % (2 * half) - half
    mean = dequantize_sum(opened, grid).values / plan.parties
    error = float(np.sum((mean - rows.mean(axis=0)) ** 2))
    return error, float(np.mean(opened != total))


_SAMPLERS: dict[str, Callable[[int, int, BitSource], NDArray[np.int64]]] = {
    "discrete-gaussian": draw_discrete_gaussian,
    "skellam": lambda sigma, size, bits: draw_skellam(sigma * sigma, size, bits),
}


def _vectors(parties: int, bits: BitSource) -> NDArray[np.float64]:
    """Return vectors of length `NORM`, uniform in direction (Box and Muller's method)."""
    words = bits.words(2 * parties * DIM).reshape(2, parties, DIM)
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    rows: NDArray[np.float64] = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])
    rows *= NORM / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def table(cells: Sequence[Cell]) -> str:
    """Return the ratios as text: a row per mechanism and ring, a column per epsilon."""
    epsilons = sorted({cell.epsilon for cell in cells})
    found = {(c.parties, c.mechanism, c.bits, c.epsilon): c.text() for c in cells}
    lines = []
    for parties in sorted({cell.parties for cell in cells}):
        head = "".join(f"{f'eps {epsilon:g}':>10}" for epsilon in epsilons)
        lines += [f"n = {parties}", f"{'mechanism':<18}{'bits':>4}{head}"]
        for mechanism in MECHANISMS:
            for bits in sorted({cell.bits for cell in cells}):
                row = "".join(f"{found[parties, mechanism, bits, e]:>10}" for e in epsilons)
                lines.append(f"{mechanism:<18}{bits:>4}{row}")
        lines.append("")
    lines.append("* no plan: everybody honest, ring sized for 2 standard deviations of the sum")
    return "\n".join(lines)


def draw_curves(cells: Sequence[Cell], path: Path) -> None:
    """Write the curves as a picture: a color per ring, a style per mechanism; needs matplotlib."""
    from matplotlib.figure import Figure

    sizes, rings = (sorted({getattr(cell, name) for cell in cells}) for name in ("parties", "bits"))
    figure = Figure(figsize=(4.5 * len(sizes) + 2, 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, parties in zip(panels, sizes, strict=True):
        for mechanism, style in zip(MECHANISMS, ("-o", "--s"), strict=True):
            for number, bits in enumerate(rings):
                key = (parties, mechanism, bits)
                line = [c for c in cells if (c.parties, c.mechanism, c.bits) == key]
                axes.plot(
                    [cell.epsilon for cell in line],
                    [math.nan if cell.ratio is None else cell.ratio for cell in line],
                    style,
                    color=f"C{number}",
                    markersize=4,
                    label=f"{mechanism}, {bits} bits",
                )
        axes.set(xlabel="epsilon", ylabel="MSE over central Gaussian", yscale="log")
        axes.set_title(f"n = {parties}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cells and print the table, or one JSON document."""
    options = _parser().parse_args(arguments)
    if options.smoke:
        options.parties, options.epsilons, options.bits = [100], [2.0], [10, 12, 16]
        options.repeats = 5
    started = time.perf_counter()
    cells = [
        measure((parties, bits, epsilon, mechanism), options.repeats)
        for parties in options.parties
        for mechanism in MECHANISMS
        for bits in options.bits
        for epsilon in options.epsilons
    ]
    seconds = time.perf_counter() - started
    if options.plot is not None:
        draw_curves(cells, options.plot)
    if options.json:
        print(json.dumps({"seconds": seconds, "cells": [asdict(cell) for cell in cells]}))
        return
    print(table(cells))
    print(f"{options.repeats} repeats a cell, {seconds:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--parties", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--bits", type=int, nargs="+", default=[10, 11, 12, 13, 14, 15, 16])
    parser.add_argument("--repeats", type=int, default=6, help="estimates per cell")
    parser.add_argument("--smoke", action="store_true", help="a few cells in a few seconds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--plot", type=Path, help="also write curves to this .svg or .png")
    return parser


if __name__ == "__main__":
    main()
