"""Ask a noised sum a question without opening it; prints the answers and what they cost.

    python benchmarks/cases/shared_sum.py            # 4 ranks over MPI, about 10 s
    python benchmarks/cases/shared_sum.py --json

Hospitals hold scans of handwritten digits (scikit-learn's, public: what is true can be told). For
each of the 64 pixels: is it dark in more than T scans? And which one is dark most often? The
noised counts are added up in CrypTen's shares; comparisons run on the shares, and only the bits
and the index are opened, charged to every hospital's ledger like the sum itself. The second
question is about the same noised sum and costs nothing more.

Seconds and bytes stand beside those of opening a sum of the same length, in the same session.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcfl.dp.grid import round_grid
from mpcfl.dp.ledger import Budget, Ledger
from mpcfl.dp.noise import add_noise, draw_noise_share
from mpcfl.dp.plan import NoisePlan, make_plan
from mpcfl.dp.quantize import quantize_rows, sum_levels
from mpcfl.errors import MpcflError
from mpcfl.launch.mpirun import compose, supervise
from mpcfl.net.transport import Transport

_PIXELS = 64
# A pixel of the data set counts the dark points of a square, 0 to 16.
_DARK = 8
_MODULUS_BITS = 32
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, of how many, for how much.

    Attributes:
        parties: hospitals, one rank each.
        threshold: T, in scans.
        epsilon: budget of every ledger, record level.
        delta: of the same.
        values: timed repetitions; medians are printed.
    """

    parties: int = 4
    threshold: int = 600
    epsilon: float = 1.0
    delta: float = 1e-5
    values: int = 5


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the repetitions, at rank 0: seconds, bytes that it sent, and messages."""

    seconds: float
    bytes_sent: int
    messages_sent: int


def plan_of(question: Question, records: int) -> NoisePlan:
    """Return the plan: a scan's 64 zeros and ones have a norm of 8 at most."""
    return make_plan(
        epsilon=question.epsilon,
        delta=question.delta,
        rounds=1,
        parties=question.parties,
        dim=_PIXELS,
        clip_norm=_PIXELS**0.5,
        modulus_bits=_MODULUS_BITS,
        unit="record",
        records=records,
    )


def dark_pixels() -> NDArray[np.float64]:
    """Return which pixels are dark, shape (scans, 64), zeros and ones; public."""
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    dark: NDArray[np.float64] = (pixels > _DARK).astype(np.float64)
    return dark


def run_rank(question: Question, folder: Path) -> dict[str, Any]:
    """Ask both questions at this rank; all ranks call it together."""
    from mpi4py import MPI  # opens MPI

    from mpcfl.net.mpi import MpiTransport
    from mpcfl.net.roster import agree_run_id
    from mpcfl.secagg.base import SumSettings
    from mpcfl.secagg.crypten_sum import open_crypten_sum
    from mpcfl.secagg.shared_sum import Charged

    transport = MpiTransport(MPI.COMM_WORLD, duplicate=True)
    scans, rank = dark_pixels(), transport.rank
    plan = plan_of(question, len(scans))
    grid = round_grid(plan, 0)
    own = quantize_rows(scans[rank :: question.parties], grid)
    noised = add_noise(sum_levels([own], plan), draw_noise_share(plan))
    # Public integers to open: a noise share is for one sum only.
    public = np.arange(plan.vector_dim, dtype=np.int64)
    settings = SumSettings(plan.vector_dim, _MODULUS_BITS, run_id=agree_run_id(transport))
    session = open_crypten_sum(transport, settings)
    clock = Clock(transport, question.values)
    budget = Budget(question.epsilon, question.delta)
    with Ledger.open(
        folder / f"party-{rank}.jsonl", identity=f"hospital {rank}", budget=budget
    ) as ledger:
        clock.time("open the sum", lambda: session.open(session.aggregate(session.protect(public))))
        with (
            session.share_sum(noised, Charged(ledger, plan)) as shared,
            shared.computing() as total,
        ):
            level = round(question.threshold * grid.scale)
            above = clock.time("compare", lambda: shared.open(total > level))
            first_charge = ledger.epsilon()
            index = clock.time("argmax", lambda: shared.open(total.argmax(one_hot=False)))
        charge, charges = ledger.epsilon(), ledger.charges
    session.close()
    transport.close()
    return {
        **asdict(question),
        "rank": rank,
        "scans": len(scans),
        "dim": plan.vector_dim,
        "noise_in_scans": plan.local_sigma * question.parties**0.5 / grid.scale,
        "epsilon_charged_first": first_charge,
        "epsilon_charged": charge,
        "charges": charges,
        "costs": {name: asdict(cost) for name, cost in clock.costs.items()},
        **compare(scans.sum(axis=0), question.threshold, above.numpy(), int(index)),
    }


class Clock:
    """Repeats something at all ranks together and keeps the medians."""

    def __init__(self, transport: Transport, values: int) -> None:
        self._transport = transport
        self._values = values
        self.costs: dict[str, Cost] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the last result of ``work``."""
        meter, rows, result = self._transport.meter, [], None
        for _ in range(self._values):
            self._transport.allgather(b"")
            sent, messages, start = meter.bytes_sent, meter.messages_sent, time.perf_counter()
            result = work()
            seconds = time.perf_counter() - start
            rows.append((seconds, meter.bytes_sent - sent, meter.messages_sent - messages))
        seconds, sent, messages = (statistics.median(row) for row in zip(*rows, strict=True))
        self.costs[name] = Cost(seconds, int(sent), int(messages))
        return result


def compare(
    truth: NDArray[np.float64], threshold: int, above: NDArray[np.int64], index: int
) -> dict[str, Any]:
    """Return the answers beside those that the counts without noise would give."""
    return {
        "above": above.tolist(),
        "above_agreement": float(np.mean((truth > threshold) == above)),
        "darkest": index,
        "darkest_scans": int(truth[index]),
        "truly_darkest": int(truth.argmax()),
        "truly_darkest_scans": int(truth.max()),
    }


def page(found: dict[str, Any]) -> str:
    """Return what was found as text."""
    n_above = sum(found["above"])
    costs = [
        f"{name:<13} {cost['seconds'] * 1e3:>10.1f} {cost['bytes_sent']:>11,} "
        f"{cost['messages_sent']:>9,}"
        for name, cost in found["costs"].items()
    ]
    lines = [
        f"{found['parties']} hospitals, {found['scans']} scans, noise of "
        f"{found['noise_in_scans']:.0f} scans (one sigma) in each count",
        f"pixels dark in more than {found['threshold']} scans: {n_above} of {found['dim']}; "
        f"{found['above_agreement']:.1%} of all answers are those without noise",
        f"darkest pixel: {found['darkest']}, dark in {found['darkest_scans']} scans; without "
        f"noise: {found['truly_darkest']}, {found['truly_darkest_scans']}",
        f"epsilon charged: {found['epsilon_charged']:.3f} of {found['epsilon']:g} at delta "
        f"{found['delta']:g}, after the first question {found['epsilon_charged_first']:.3f}",
        "",
        f"{'at rank 0':<13} {'ms':>10} {'bytes sent':>11} {'messages':>9}",
        *costs,
    ]
    return "\n".join(lines)


def ask(question: Question) -> dict[str, Any]:
    """Run all ranks under mpirun; return what rank 0 found.

    Raises:
        MpcflError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="mpcfl-shared-") as folder:
        line = compose(question.parties, [__file__, "--rank", folder, json.dumps(asdict(question))])
        said: list[str] = []
        outcome = supervise(line, said.append, _TIMEOUT_S)
        out = Path(folder) / "found.json"
        if outcome.exit_code != 0 or not out.exists():
            raise MpcflError("\n".join(("a rank failed:", *said, *outcome.stderr_tail)))
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask, and print the page or one JSON document."""
    options = _parser().parse_args(arguments)
    if options.rank is not None:
        return _main_of_rank(Path(options.rank[0]), Question(**json.loads(options.rank[1])))
    try:
        found = ask(Question(options.parties, options.threshold, options.epsilon))
    except MpcflError as error:
        print(f"shared_sum: error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if options.json else page(found))
    return 0


def _main_of_rank(folder: Path, question: Question) -> int:
    try:
        found = run_rank(question, folder)
    except Exception:  # noqa: BLE001 - the edge of the process: all ranks must end
        from mpi4py import MPI

        traceback.print_exc()
        # The other ranks may wait for this one in the middle of an exchange.
        MPI.COMM_WORLD.Abort(1)
    if found["rank"] == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--parties", type=int, default=4, help="hospitals, one rank each")
    parser.add_argument("--threshold", type=int, default=600, help="T, in scans")
    parser.add_argument("--epsilon", type=float, default=1.0, help="at delta 1e-5, record level")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
