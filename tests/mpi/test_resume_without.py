"""A run goes on without a party that was lost, and later with it again, over real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcfl.audit.transcript import check_run
from mpcfl.dp import verify_ledger

pytestmark = pytest.mark.mpi

JOB = """
task = "toy"

[parties]
count = 3
names = ["ada", "ben", "cyd"]
max_dropout = 1

[privacy]
unit = "record"
epsilon = 8.0
records = 4
sample_rate = 0.5
spare_attempts = 3

[training]
rounds = 4

[aggregation]
backend = "ring"
deadline_s = 20
"""

# Ranks that kill themselves when they begin to aggregate, each for a number of times of its own.
DOOMED = """
import json, os, signal, sys
from contextlib import contextmanager

from mpcfl.net.meter import Meter
from mpcfl.parties.__main__ import main

dies_at = json.loads(sys.argv[1]).get(os.environ["PMIX_RANK"], 0)
original, times = Meter.stage, 0


@contextmanager
def stage(self, name):
    global times
    times += name == "aggregate"
    if name == "aggregate" and times == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    with original(self, name):
        yield


Meter.stage = stage
sys.exit(main(sys.argv[2:]))
"""


def test_who_was_lost_is_left_out_and_joins_again(
    mpirun: Callable[..., Any], tmp_path: Path
) -> None:
    """Ben dies in round 1 and cyd in round 2; the run goes on without ben, then with all."""
    (tmp_path / "doomed.py").write_text(DOOMED)
    (tmp_path / "job.toml").write_text(JOB)

    def run(n_ranks: int, dies_at: dict[str, int], *options: str) -> Any:
        return mpirun(n_ranks, "doomed.py", json.dumps(dies_at), *options, timeout_s=90)

    # Cyd aggregates twice in round 1.
    first = run(3, {"1": 1, "2": 3}, "job.toml", "--out", "out")
    assert "ben was lost in round 1; 2 parties go on: ada, cyd" in first.stdout, first.stderr
    assert "ben, cyd were lost: 1 of 3 parties are left" in first.stderr
    assert "done: " not in first.stdout

    second = run(2, {"1": 2}, "--resume", "out", "--without", "ben")
    assert "resumed after round 1" in second.stdout, second.stderr
    assert "round 2/4" in second.stdout
    assert "ben, cyd were lost: 1 of 3 parties are left" in second.stderr

    last = run(3, {}, "--resume", "out")
    assert "resumed after round 2" in last.stdout, last.stderr
    assert "done: 4 rounds" in last.stdout
    assert last.code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    both, everybody = ["ada", "cyd"], ["ada", "ben", "cyd"]
    assert [one["parties"] for one in record["rounds"]] == [both, both, everybody, everybody]
    assert check_run(tmp_path / "out") == []
    # Ada paid for two attempts that broke off; ben was not asked in the resumed round.
    ledgers = [tmp_path / "out" / "ledger" / f"party-{party}.jsonl" for party in range(3)]
    spent = [verify_ledger(ledger).epsilon for ledger in ledgers]
    assert spent[0] > spent[1] > 0
    assert max(spent) == pytest.approx(record["privacy"]["epsilon"])
