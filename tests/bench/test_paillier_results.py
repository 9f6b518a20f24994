"""The published figures of Paillier: within their limits, and what the records say."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2] / "benchmarks"
RECORDS = ROOT / "results" / "paillier.jsonl"
PAGE = ROOT / "results" / "paillier.md"

Record = dict[str, Any]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    # A program finds the modules beside it.
    monkeypatch.syspath_prepend(str(ROOT / "cases"))
    return importlib.import_module


@pytest.fixture
def launches() -> Callable[[str], list[Record]]:
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    return lambda name: [record for record in records if record["name"] == name]


@pytest.mark.parametrize("name", ["paillier_speed", "paillier_peers"])
def test_committed_figures_reach_every_limit(
    case: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert case(name).main(["--table", str(RECORDS)]) == 0
    tables = capsys.readouterr().out
    limits = [f for f in case("paillier_figures").figures(name) if f.limit is not None]
    assert tables.count("| yes |") == len(limits) > 0


def test_the_page_is_made_from_the_records(case: Callable[[str], ModuleType]) -> None:
    assert PAGE.read_text() == case("paillier_page").page(case("paillier_cell").load(RECORDS))


def test_every_launch_was_made_and_none_failed(
    case: Callable[[str], ModuleType], launches: Callable[[str], list[Record]]
) -> None:
    for cell in case("paillier_speed").cells():
        assert len(launches(cell.name)) == cell.launches
        assert all(record["settings"]["dim"] == cell.dim for record in launches(cell.name))
    for bench in case("paillier_peers").benches():
        (record,) = launches(bench.name)
        assert set(record["measured"]["cpu_seconds"]) == set(bench.subjects)


def _processor_seconds(record: Record) -> float:
    """Return those of all ranks together for the last sum of a launch, per coordinate."""
    ranks = record["measured"]["ranks"]
    total: float = sum(rank["sums"][-1]["cpu_seconds"] for rank in ranks)
    return total / record["settings"]["dim"]


@pytest.mark.parametrize(
    ("cell", "arithmetic", "least"),
    [("gmpy2-2048", "gmpy2", 700), ("kernel-2048", "avx512-ifma", 2500)],
)
def test_a_whole_round_takes_so_many_times_less_than_with_phe(
    launches: Callable[[str], list[Record]], cell: str, arithmetic: str, least: int
) -> None:
    ours, theirs = launches(cell), launches("phe-2048")
    for record in (*ours, *theirs):
        settings = record["settings"]
        # Four parties and the aggregator.
        assert (settings["parties"], settings["key_bits"]) == (4, 2048)
        assert len(record["measured"]["ranks"]) == 5
    assert {record["measured"]["arithmetic"] for record in ours} == {arithmetic}
    costs = [statistics.median(map(_processor_seconds, side)) for side in (theirs, ours)]
    assert costs[0] / costs[1] >= least


@pytest.mark.parametrize("custody", ["clients", "holder"])
def test_bytes_and_memory_are_within_bounds(
    launches: Callable[[str], list[Record]], custody: str
) -> None:
    (sent,) = launches(f"bytes-{custody}")
    assert (sent["settings"]["parties"], sent["settings"]["dim"]) == (8, 1_000_000)
    ranks = sent["measured"]["ranks"]
    assert len(ranks) == 8 + (custody == "clients")
    parties = ranks[:-1] if custody == "clients" else ranks[1:]
    for rank in parties:
        last = rank["sums"][-1]
        ciphertext_bytes = last["sent_to"][-1] if custody == "clients" else last["bytes_sent"]
        # No fewer than the ciphertexts of 102 slots, and so none went another way.
        assert 512 * 9_804 <= ciphertext_bytes <= 5.1e6
        assert sum(last["sent_to"]) == last["bytes_sent"]
    (large,) = launches(f"memory-{custody}")
    assert large["settings"]["dim"] == 10_000_000
    assert max(rank["grown_bytes"] for rank in large["measured"]["ranks"]) <= 300e6


@pytest.mark.parametrize("ours", ["mpcfl, gmpy2", "mpcfl, kernel"])
@pytest.mark.parametrize("theirs", ["HEU ZPaillier", "pypaillier"])
def test_a_ciphertext_takes_less_than_with_other_libraries(
    launches: Callable[[str], list[Record]], ours: str, theirs: str
) -> None:
    (record,) = launches("libraries-2048")
    warmups = record["settings"]["warmups"]

    def middle(subject: str, operation: str) -> float:
        return statistics.median(record["measured"]["cpu_seconds"][subject][operation][warmups:])

    assert middle(ours, "encrypt") < middle(theirs, "encrypt")
    assert middle(ours, "decrypt") <= middle(theirs, "decrypt")


@pytest.mark.parametrize("operation", ["pack", "unpack"])
def test_a_million_values_are_packed_in_milliseconds(
    launches: Callable[[str], list[Record]], operation: str
) -> None:
    (record,) = launches("packing")
    seconds = record["measured"]["cpu_seconds"]["packing"][operation][
        record["settings"]["warmups"] :
    ]
    assert statistics.median(seconds) <= 0.030
