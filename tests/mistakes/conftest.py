"""What the tests of known mistakes share: jobs, plans, a run with real ledgers, and sabotage.

Each test states a check twice: our code passes it, and with the mistake put in it fires. Only
this file knows how stages are called; a mistake is put in at the name under which the thread
(`mpcfl/round.py`) or a role (`parties/`) calls a stage.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import nn

from mpcfl.config import Job, parse_job
from mpcfl.dp import NoisePlan, make_plan, quantize_rows
from mpcfl.dp.chain import Entry, read_chain
from mpcfl.dp.grid import round_grid
from mpcfl.hazmat.bits import KeystreamBits, raw_keyed_bits
from mpcfl.net.memory import MemoryTransport, run_parties
from mpcfl.parties import progress
from mpcfl.parties.events import Event, RoundDone
from mpcfl.parties.folders import RunPlace
from mpcfl.parties.ledgers import open_ledgers
from mpcfl.parties.program import serve_rounds
from mpcfl.report.run_folder import RunFolder
from mpcfl.round import PublicState, run_round, run_rounds

sys.path.append(str(Path(__file__).parents[1] / "parties"))

from parties_in_threads import connected, loaded_ranks

# Of every statistical check in this folder, per test.
FALSE_POSITIVE_RATE = 1e-9
Sabotage = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Sabotage:
    """Return ``with sabotage("module:name", wrong)``: ``wrong`` gets what it replaces first."""

    @contextmanager
    def replaced(target: str, wrong: Callable[..., Any]) -> Iterator[None]:
        module_name, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module_name))
        right = getattr(owner, name)

        def mistaken(*arguments: Any, **named: Any) -> Any:
            return wrong(right, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, mistaken)
            yield

    return replaced


class Line:
    """Three records per party; the model is 2 weights and a bias, all zero at first."""

    n_inputs = 2

    def model(self) -> nn.Module:
        model = nn.Linear(self.n_inputs, 1)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        return model

    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        steps = torch.arange(3.0 * self.n_inputs).reshape(3, self.n_inputs) / 8 - 0.5
        inputs = steps + 0.125 * party
        return inputs, inputs.sum(dim=1, keepdim=True) + 0.25

    def test_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return Line.party_data(self, 0, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)


class Silent(Line):
    """The model fits already: every update is exactly zero, and the opened sum is noise."""

    n_inputs = 399

    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = super().party_data(party, n_parties)
        return inputs, torch.zeros_like(targets)


@pytest.fixture
def line_task() -> type[Line]:
    """A task with a signal, dim 3."""
    return Line


@pytest.fixture
def silent_task() -> type[Silent]:
    """A task without any signal, dim 400."""
    return Silent


@pytest.fixture
def job_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Return a function that makes a job of a task class; tables as keywords."""
    module = ModuleType("mistaken_tasks")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def make(task: type, unit: str = "party", **tables: dict[str, Any]) -> Job:
        setattr(module, task.__name__, task)
        privacy: dict[str, Any] = {"unit": unit}
        if unit != "none":
            privacy["epsilon"] = 8.0
        parties = {"count": 3} | tables.get("parties", {})
        if unit == "record":
            privacy["records"] = 3 * parties["count"]
        document = {
            "task": f"{module.__name__}:{task.__name__}",
            "parties": parties,
            "privacy": privacy | tables.get("privacy", {}),
            "training": {"rounds": 2} | tables.get("training", {}),
            "aggregation": {"backend": "plain", "key_bits": 2048} | tables.get("aggregation", {}),
        }
        return parse_job(document, "test")

    return make


@pytest.fixture
def keyed() -> Callable[..., list[KeystreamBits]]:
    """Return ``keyed(n, first)``: one known bit source per party."""
    return lambda n=3, first=1: [raw_keyed_bits(bytes([first + rank]) * 32) for rank in range(n)]


@pytest.fixture
def opened() -> Callable[..., NDArray[np.int64]]:
    """Return ``opened(job, bits)``: the sum that the first round opens."""
    return lambda job, bits=(): run_round(job, bits).opened


@pytest.fixture
def opened_rounds() -> Callable[..., NDArray[np.int64]]:
    """Return ``opened_rounds(job, bits)``: the sums of all rounds, shape (rounds, dim)."""

    def run(job: Job, bits: Sequence[KeystreamBits] = ()) -> NDArray[np.int64]:
        sums: list[NDArray[np.int64]] = []
        run_rounds(job, bits, lambda _, total, __: sums.append(total))
        return np.stack(sums)

    return run


@pytest.fixture
def plan_of() -> Callable[..., NoisePlan]:
    """Return a function that makes a plan, the documented worked example by default."""

    def make(**changes: Any) -> NoisePlan:
        asked: dict[str, Any] = {
            "epsilon": 8.0, "delta": 1e-5, "rounds": 10, "parties": 10, "dim": 50,
            "clip_norm": 1.0, "modulus_bits": 32,
        }  # fmt: skip
        return make_plan(**asked | changes)

    return make


@pytest.fixture
def quantized() -> Callable[[NDArray[np.float64], NoisePlan], NDArray[np.int64]]:
    """Return stage 3 on a plan's own grid."""
    return lambda rows, plan: quantize_rows(rows, round_grid(plan, 0))


def _curve_delta(mu: float, epsilon: float) -> float:
    """Balle and Wang 2018, Theorem 8, written down once more and independently."""
    lower = math.exp(min(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu), 0.0))
    return float(stats.norm.cdf(mu / 2 - epsilon / mu)) - lower


@pytest.fixture
def true_epsilon() -> Callable[..., float]:
    """Return the exact epsilon of a Gaussian release of noise multiplier z, to 1e-9."""

    def solve(noise_multiplier: float, delta: float = 1e-5, rounds: int = 1) -> float:
        mu = math.sqrt(rounds) / noise_multiplier
        top = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
        return float(optimize.brentq(lambda e: _curve_delta(mu, e) - delta, 0.0, top, xtol=1e-12))

    return solve


@pytest.fixture
def variance_fits() -> Callable[..., bool]:
    """Return a two-sided chi-square test of zero-mean draws against a variance."""

    def fits(draws: NDArray[Any], variance: float, tests: int = 1) -> bool:
        tail = FALSE_POSITIVE_RATE / (2 * tests)
        statistic = float(np.sum(draws.astype(np.float64) ** 2)) / variance
        low, high = stats.chi2.ppf(tail, draws.size), stats.chi2.isf(tail, draws.size)
        return bool(low < statistic < high)

    return fits


@pytest.fixture
def independent() -> Callable[[NDArray[Any], NDArray[Any]], bool]:
    """Return a two-sided test of no correlation; it fires surely on equal or shifted vectors."""

    def test(first: NDArray[Any], second: NDArray[Any]) -> bool:
        correlation = float(np.corrcoef(first, second)[0, 1])
        # Fisher's transform: normal with variance 1 / (n - 3) if there is no correlation.
        deviation = abs(math.atanh(min(correlation, 1 - 1e-15))) * math.sqrt(first.size - 3)
        return bool(deviation < stats.norm.isf(FALSE_POSITIVE_RATE / 2))

    return test


@dataclass
class Ran:
    """A run with all roles in one process: what was written, sent and seen.

    Attributes:
        rounds: opened and applied rounds, as party 0 saw them.
        sent: per rank, the messages that left it once all knew each other, in order.
        openings: sums that were opened at party 0.
        publics: the public state of every rank at the end.
        error: what ended the run, if it failed.
    """

    folder: RunFolder
    rounds: list[int] = field(default_factory=list)
    sent: dict[int, list[bytes]] = field(default_factory=dict)
    openings: int = 0
    publics: list[PublicState] = field(default_factory=list)
    error: Exception | None = None

    def ledger(self, party: int) -> list[Entry]:
        """Return the entries of a party's ledger, its chain checked."""
        path = self.folder.ledger_jsonl(party)
        return read_chain(path.read_bytes(), path)[0]

    def reserves(self, party: int) -> list[dict[str, Any]]:
        """Return the charges that a party wrote ahead."""
        return [e.body["charge"] for e in self.ledger(party) if e.kind == "reserve"]


class _CountsOpenings:
    """A session of secure sums that counts what it opens, and shows what it talks on."""

    def __init__(self, secure: Any, ran: Ran, transport: Any) -> None:
        self._secure, self._ran, self.transport = secure, ran, transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._secure, name)

    def open(self, aggregated: Any) -> Any:
        total = self._secure.open(aggregated)
        self._ran.openings += self.transport.rank == 0
        return total


def _watch(transport: MemoryTransport, sent: list[bytes]) -> None:
    """Note all that leaves a rank, in order."""
    exchange = transport.exchange

    def watched(outgoing: Mapping[int, bytes], sources: Sequence[int]) -> dict[int, bytes]:
        sent.extend(bytes(message) for _, message in sorted(outgoing.items()))
        return exchange(outgoing, sources)

    transport.exchange = watched  # type: ignore[method-assign]  # of this object only
    scatter, gather, allreduce = (
        transport.begin_scatter,
        transport.begin_gather,
        transport.begin_allreduce,
    )

    def watched_scatter(blocks: Sequence[Any], inbox: Mapping[int, Any]) -> Any:
        sent.extend(block.tobytes() for block in blocks)
        return scatter(blocks, inbox)

    def watched_gather(own: Any, inbox: Mapping[int, Any]) -> Any:
        sent.append(own.tobytes())
        return gather(own, inbox)

    def watched_allreduce(words: NDArray[Any]) -> Any:
        sent.append(words.tobytes())
        return allreduce(words)

    transport.begin_scatter = watched_scatter  # type: ignore[method-assign]  # as above
    transport.begin_gather = watched_gather  # type: ignore[method-assign]  # as above
    transport.begin_allreduce = watched_allreduce  # type: ignore[method-assign]  # as above


@pytest.fixture
def run_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Return a function that runs a job, or resumes one, with the roles of `parties/`."""
    count = iter(range(1000))
    # Drawing the page for people would be most of the time.
    monkeypatch.setattr("mpcfl.report.html.write_run_report", lambda *_: None)

    def run(job: Job, resumed: RunFolder | None = None) -> Ran:
        ran = Ran(resumed or RunFolder(tmp_path / f"run-{next(count)}"))
        ranks = loaded_ranks(job, ran.folder, range(job.n_ranks))
        ran.publics = [rank.public for rank in ranks]

        def told(event: Event) -> None:
            if isinstance(event, RoundDone):
                ran.rounds.append(event.round - 1)

        def program(transport: MemoryTransport) -> None:
            rank = ranks[transport.rank]
            with closing(connected(job, transport)) as connection:
                _watch(transport, ran.sent.setdefault(transport.rank, []))
                open_ledgers(rank, connection, ran.folder)
                everybody = tuple(connection.members)
                place = RunPlace(ran.folder, everybody, everybody[:1])
                serve_rounds(rank, place, connection, told)

        open_sum = progress.open_sum

        def open_counted(open_backend: Any, transport: Any, settings: Any) -> Any:
            secure = open_sum(open_backend, transport, settings)
            return _CountsOpenings(secure, ran, transport)

        monkeypatch.setattr(progress, "open_sum", open_counted)
        try:
            run_parties(job.n_ranks, program, deadline_s=120.0)
        except Exception as error:  # noqa: BLE001 - the test says which one it expects
            ran.error = error
        finally:
            monkeypatch.setattr(progress, "open_sum", open_sum)
        return ran

    return run


@pytest.fixture
def uncharged() -> Callable[..., str | None]:
    """Return `_reserve` with this mistake: an attempt is made, but no ledger hears of it."""

    def reserve(right: Callable[..., str | None], run: Any, attempt: int) -> str | None:
        ledger, run.rank.ledger = run.rank.ledger, None
        try:
            return right(run, attempt)
        finally:
            run.rank.ledger = ledger

    return reserve


@pytest.fixture
def changed_plan(sabotage: Sabotage) -> Callable[..., AbstractContextManager[None]]:
    """Return ``with changed_plan(local_sigma=...)``: every party runs on a mistaken plan."""

    @contextmanager
    def change(**fields: Any) -> Iterator[None]:
        def wrong(right: Callable[..., NoisePlan], *arguments: Any) -> NoisePlan:
            plan = right(*arguments)
            return dataclasses.replace(plan, **fields)

        with (
            sabotage("mpcfl.round:plan_for_job", wrong),
            sabotage("mpcfl.round:ring_plan_for_job", wrong),
        ):
            yield

    return change
