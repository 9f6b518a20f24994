"""Mistake 16: figures of single parties leave them beside the protected sum.

Who made it: Flower aggregates every client's metrics and `num_examples` in the clear; TensorFlow
Federated releases `clipped_count` without noise. What goes wrong: a loss, a norm, a count or the
mere length of a message tells what the noise hides, and no accountant sees it. What would have to
break here: the bytes that a party sends have another number or length for other data, a record
or a log has a key or a line that depends on one party, or something is printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mpcfl.errors import QuantizeError
from mpcfl.report.run_record import RunRecord
from mpcfl.secagg.registry import backend_names

# Seconds and memory are those of the machine that wrote them; metrics are of public data.
ROUND_KEYS = {
    "round", "attempt", "parties", "epsilon", "accuracy", "loss", "seconds", "bytes_sent",
    "bytes_received", "peak_rss_bytes",
}  # fmt: skip
PER_PARTY = {"losses", "norms", "num_examples", "clipped", "contributions", "updates", "weights"}


@pytest.fixture
def two_runs(job_of, line_task, run_job):
    """Run one job on two sets of data that have nothing in common but the public facts."""

    def task(extreme: bool) -> type:
        class Data(line_task):
            """Either the usual data, or other values and numbers of records, some not finite."""

            def party_data(self, party, n_parties):
                inputs, targets = super().party_data(party, n_parties)
                if not extreme:
                    return inputs, targets
                if party == 2:
                    return inputs * float("nan"), targets
                copies = 1 + 40 * party
                return 1e3 * inputs.repeat(copies, 1), -1e6 * targets.repeat(copies, 1)

        return Data

    def run(unit: str, backend: str, privacy=None, parties=None) -> list[Any]:
        records = {"records": 200} if unit == "record" else {}
        tables = {
            "privacy": records | (privacy or {}),
            "parties": parties or {},
            "aggregation": {"backend": backend},
        }
        runs = [run_job(job_of(task(extreme), unit, **tables)) for extreme in (False, True)]
        assert [ran.error for ran in runs] == [None, None]
        return runs

    return run


def lengths(ran) -> dict[int, list[int]]:
    return {rank: [len(message) for message in sent] for rank, sent in sorted(ran.sent.items())}


@pytest.mark.parametrize("backend", backend_names())
def test_messages_have_the_same_number_and_length_whatever_the_data(backend, two_runs):
    first, second = two_runs("party", backend)
    assert lengths(first) == lengths(second)
    assert all(sizes for sizes in lengths(first).values())


@pytest.mark.parametrize(
    ("unit", "privacy", "parties"),
    [
        ("record", {}, {}),
        ("record", {"sample_rate": 0.5, "clipping": "adaptive"}, {}),
        ("party", {"clipping": "adaptive"}, {"weighting": "private", "max_records": 100}),
    ],
    ids=["records", "adaptive", "counts"],
)
def test_so_they_have_whatever_travels(unit, privacy, parties, two_runs):
    first, second = two_runs(unit, "plain", privacy, parties)
    assert lengths(first) == lengths(second)


def test_the_check_fires_on_numbers_of_examples(two_runs, sabotage):
    def tells_its_size(right, public, party, secure, *more):
        secure.secure.transport.allgather(str(len(party.records[0])).encode())
        return right(public, party, secure, *more)

    with sabotage("mpcfl.parties.data_party:protected_sum", tells_its_size):
        first, second = two_runs("party", "plain")
    assert lengths(first) != lengths(second)


@pytest.mark.parametrize("backend", ["plain", "ring", "crypten"])
def test_the_check_sees_the_vectors_themselves(backend, two_runs):
    """So that the comparison above is one of all that leaves, not of messages beside it."""
    first, _ = two_runs("party", backend)
    words = 3 * (1 if backend == "ring" else 2) * 4
    for sizes in lengths(first).values():
        assert sizes.count(words) >= 2, sizes


def json_of(ran) -> dict[str, Any]:
    return json.loads(ran.folder.run_json.read_text())


def shapes(value: Any, path: str = "") -> Iterator[str]:
    """Yield every key of a document with the type of its value; names of stages stay."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from shapes(inner, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        yield f"{path}[{len(value)}]"
        for inner in value:
            yield from shapes(inner, f"{path}[]")
    else:
        yield path


def own_figures(document: Mapping[str, Any]) -> set[str]:
    """Return what a record says per party, beyond the names that the job gives."""
    found = {key for key in document["rounds"][0] if key not in ROUND_KEYS}
    for path in shapes(document):
        found |= {word for word in PER_PARTY if word in path.lower() and "/job/" not in path}
    return found


@pytest.mark.parametrize("unit", ["record", "party"])
def test_the_record_of_a_run_has_the_same_keys_and_none_per_party(unit, two_runs):
    first, second = (json_of(ran) for ran in two_runs(unit, "plain"))
    assert set(shapes(first)) == set(shapes(second))
    assert not own_figures(first)
    # What is public and not a metric, a time or a size of memory is equal.
    for document in (first, second):
        document.pop("metrics")
        document.pop("model_sha256")
        for one in document["rounds"]:
            for key in ("accuracy", "loss", "seconds", "peak_rss_bytes"):
                one.pop(key)
    assert first == second


def test_the_check_fires_on_a_record_with_losses(two_runs):
    document = json_of(two_runs("party", "plain")[0])
    assert not own_figures(document)
    # The reader refuses any other key, so that none is added in passing.
    assert set(document) == set(RunRecord.__slots__)
    document["rounds"][0]["losses"] = [0.1, 0.2, 0.3]
    assert own_figures(document)


def test_a_ledger_tells_nothing_about_the_data(two_runs):
    for unit in ("record", "party"):
        first, second = two_runs(unit, "plain")
        for party in range(3):
            bodies = [
                [{k: v for k, v in entry.body.items() if k != "public_key"} for entry in entries]
                for entries in (first.ledger(party), second.ledger(party))
            ]
            assert bodies[0] == bodies[1]


def test_nothing_is_printed_or_logged_on_the_way(two_runs, capfd, caplog):
    caplog.set_level("DEBUG")
    two_runs("record", "plain")
    out, err = capfd.readouterr()
    assert out + err == ""
    assert not [record for record in caplog.records if record.name.startswith("mpcfl")]


def test_an_error_shows_no_value_of_a_party(job_of, line_task, opened):
    """Without privacy an update may not fit; the message is the same whatever its value."""

    def refusal(offset: float) -> str:
        class TooLarge(line_task):
            def party_data(self, party, n_parties):
                inputs, targets = super().party_data(party, n_parties)
                return inputs, targets + offset * (party == 1)

        with pytest.raises(QuantizeError, match="does not fit") as refused:
            opened(job_of(TooLarge, "none", aggregation={"modulus_bits": 16}))
        return str(refused.value)

    assert refusal(1e5) == refusal(-7e8)


OWN_TASKS = """
import torch
from torch import nn


class Usual:
    def model(self):
        return nn.Linear(2, 1)

    def party_data(self, party, n_parties):
        return torch.ones(3, 2), torch.zeros(3, 1)

    def test_data(self):
        return torch.eye(2), torch.ones(2, 1)

    def loss(self, outputs, targets):
        return nn.functional.mse_loss(outputs, targets)


class Other(Usual):
    def party_data(self, party, n_parties):
        inputs, targets = torch.ones(3 + 100 * party, 2), 1e3 * torch.ones(3 + 100 * party, 1)
        return inputs * (1.0 if party else float("nan")), targets
"""
OWN_JOB = """
task = "own_tasks:{task}"
[parties]
count = 2
[privacy]
unit = "record"
epsilon = 8.0
records = 400
[training]
rounds = 2
[aggregation]
backend = "plain"
"""
# One start of MPI and torch for both jobs.
BOTH_JOBS = """
import sys

from mpi4py import MPI

from mpcfl.parties.__main__ import main

for task in ("Usual", "Other"):
    if MPI.COMM_WORLD.rank == 0:
        print("next job", flush=True)
    arguments = [f"{task}.toml", "--insecure", "--out", f"out-{task}"]
    code = main(arguments, is_whole_process=False)
    if code:
        sys.exit(code)
"""
# Written by rank 0 for people and for torch; the text of metrics and times has no fixed length.
OF_ANY_LENGTH = {"run.json", "report.html", "rounds.jsonl"}


def files_of(folder: Path) -> dict[str, int | None]:
    """Return all files of a run, with their sizes where these must not depend on data."""
    return {
        str(path.relative_to(folder)): None if path.name in OF_ANY_LENGTH else path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.mpi
def test_real_ranks_leave_the_same_lines_and_files_whatever_their_data(mpirun, tmp_path):
    (tmp_path / "own_tasks.py").write_text(OWN_TASKS, encoding="utf-8")
    (tmp_path / "both.py").write_text(BOTH_JOBS, encoding="utf-8")
    for task in ("Usual", "Other"):
        job = OWN_JOB.replace("{task}", task)
        (tmp_path / f"{task}.toml").write_text(job, encoding="utf-8")
    ended = mpirun(2, "both.py")
    assert ended.code == 0, ended.stderr
    assert ended.stderr == ""
    said = re.sub(r"-?\d+(\.\d+)?(e[-+]\d+)?", "#", ended.stdout.replace("Usual", "Other"))
    nothing, usual, other = said.split("next job\n")
    assert nothing == ""
    assert "round #/#" in usual
    assert usual == other
    files = files_of(tmp_path / "out-Usual")
    assert any(name.startswith("local/") for name in files)
    assert files == files_of(tmp_path / "out-Other")
