"""Four hosts, a party on each, and a cable that is pulled in the middle of a round."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import NEEDS_NAMESPACES, cut_off
from jobs import TASK, WarmServer, left_behind, run_job
from party_files import write_party_files
from trials import NAMES

from mpcfl.launch.hosts import Host, LinkSettings, linked_hosts

pytestmark = [pytest.mark.mpi, pytest.mark.open_mpi, NEEDS_NAMESPACES]

_DOOMED_RANK = Path(__file__).parent / "doomed_rank.py"
_DEADLINE_S = 6.0
_ROUNDS = 3
_CUT_IN = 2
_JOB = f"""
task = "small_task:SmallTask"

[parties]
count = {len(NAMES)}
names = {json.dumps(NAMES)}
max_dropout = 1

[privacy]
unit = "record"
epsilon = 14.0
records = 80
sample_rate = 0.5
spare_attempts = 1

[training]
rounds = {_ROUNDS}

[aggregation]
backend = "ring"
deadline_s = {_DEADLINE_S}
"""


@pytest.fixture
def job_folder(tmp_path: Path) -> Path:
    (tmp_path / "small_task.py").write_text(TASK)
    (tmp_path / "job.toml").write_text(_JOB)
    write_party_files(tmp_path / "parties", NAMES)
    return tmp_path


def cut_once_met(host: Host, folder: Path) -> Callable[[], None]:
    """Return what cuts a host off as soon as its party is where it should be."""

    def watch() -> None:
        while not (folder / "met").exists():
            time.sleep(0.01)
        cut_off(host)
        (folder / "cut").touch()

    return watch


def test_three_hosts_finish_after_the_fourth_is_cut_off_in_the_middle_of_a_round(
    job_folder: Path, warm: WarmServer
) -> None:
    fate = {"ranks": [3], "stage": "aggregate", "round": _CUT_IN, "event": "message", "count": 5}
    arguments = [_DOOMED_RANK, json.dumps({**fate, "wait_for": "cut"}), "job.toml"]
    arguments += ["--party-files", "parties", "--out", "out"]
    with linked_hosts(len(NAMES), LinkSettings("1gbit")) as linked:
        watcher = threading.Thread(target=cut_once_met(linked.hosts[3], job_folder), daemon=True)
        watcher.start()
        ended = run_job(warm, len(NAMES), arguments, job_folder, deadline_s=90, command=linked.mpi)
    said = ended.stdout + ended.stderr
    assert "done: " in ended.stdout, said
    met, ended = (
        (job_folder / "met").stat().st_mtime,
        (job_folder / "out" / "run.json").stat().st_mtime,
    )
    assert ended - met < _DEADLINE_S + 5 + 5, said
    assert_three_finished(job_folder / "out", said)
    assert not left_behind(warm)


def assert_three_finished(out: Path, said: str) -> None:
    record = json.loads((out / "run.json").read_text())
    assert record["stopped_early"] is None
    assert record["model_sha256"]
    parties = {entry["round"]: tuple(entry["parties"]) for entry in record["rounds"]}
    assert parties[1] == NAMES
    assert parties[3] == NAMES[:3]
    assert f"dan was lost in round {_CUT_IN}" in said
