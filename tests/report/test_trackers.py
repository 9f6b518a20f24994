"""Trackers: what is in their stores, as their own readers see it, whatever happened meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpcfl.errors import ConfigError
from mpcfl.report import tracker_choice, tracker_feed
from mpcfl.report.run_record import RoundRecord
from mpcfl.report.tracker import Outcome, Point, Tracker, final_points, parameters_of, round_points
from mpcfl.report.tracker_choice import TrackerChoice, read_choices
from mpcfl.report.tracker_feed import Tracking

sys.path.append(str(Path(__file__).parent))

from tracker_stores import (
    JOB,
    Figures,
    as_tensorboard_keeps,
    expected,
    facts,
    mlflow_client,
    mlflow_figures,
    mlflow_runs,
    record,
    tensorboard_figures,
)

FOLDERS = {"tensorboard": "tensorboard", "mlflow": "mlruns"}
ROUNDS = [record(number) for number in range(1, 6)]


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database without runs; to make one takes MLflow a second."""
    folder = tmp_path_factory.mktemp("mlflow")
    TrackerChoice("mlflow", folder).open(facts(folder / "run")).close(Outcome.FINISHED)
    client = mlflow_client(folder)
    (run,) = mlflow_runs(folder)
    client.delete_run(run.info.run_id)
    return folder / "mlflow.db"


@pytest.fixture
def run_folder(tmp_path: Path, empty_database: Path) -> Path:
    folder = tmp_path / "a run"
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    return folder


@pytest.fixture(params=sorted(FOLDERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def figures_of(name: str, run_folder: Path) -> Figures:
    folder = run_folder / FOLDERS[name]
    return tensorboard_figures(folder) if name == "tensorboard" else mlflow_figures(folder)


def as_kept(name: str, figures: Figures) -> Figures:
    return as_tensorboard_keeps(figures) if name == "tensorboard" else figures


def follow(
    run_folder: Path, names: Sequence[str], before: Sequence[RoundRecord] = ()
) -> tuple[Tracking, list[tuple[str, str]]]:
    """Open the feed of a run, as its writer does."""
    complaints: list[tuple[str, str]] = []
    tracking = Tracking(facts(run_folder), lambda name, reason: complaints.append((name, reason)))
    tracking.open(read_choices(names), before)
    return tracking, complaints


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every round written as it comes."""
    monkeypatch.setattr(tracker_feed, "_WRITE_EVERY_S", -1.0)


def test_a_store_has_what_was_written_and_says_so(name: str, run_folder: Path) -> None:
    """The contract of a `Tracker`."""
    points = [Point("a", 0.1, 1), Point("b", 2.0, 1), Point("a", 0.3, 2)]
    store: Tracker = TrackerChoice(name).open(facts(run_folder))
    assert dict(store.known()) == {}
    store.write(points)
    assert dict(store.known()) == {"a": {1, 2}, "b": {1}}
    written = as_kept(name, {"a": [(1, 0.1), (2, 0.3)], "b": [(1, 2.0)]})
    # Before it is closed: a writer may be killed.
    assert figures_of(name, run_folder) == written
    store.write([])
    store.close(Outcome.FAILED)
    again = TrackerChoice(name).open(facts(run_folder))
    assert dict(again.known()) == {"a": {1, 2}, "b": {1}}
    again.write([Point("a", 0.5, 3)])
    assert (
        figures_of(name, run_folder)["a"]
        == as_kept(name, {"a": [(1, 0.1), (2, 0.3), (3, 0.5)]})["a"]
    )
    again.start_over()
    assert dict(again.known()) == {}
    again.write([Point("a", 0.25, 1)])
    again.close(Outcome.FINISHED)
    assert figures_of(name, run_folder) == {"a": [(1, 0.25)]}


@pytest.mark.usefixtures("at_once")
def test_every_round_is_in_the_store(name: str, run_folder: Path, run_record: Any) -> None:
    tracking, complaints = follow(run_folder, [name])
    for count, one in enumerate(ROUNDS, start=1):
        tracking.add(one)
        assert figures_of(name, run_folder) == as_kept(name, expected(ROUNDS[:count]))
    run = run_record(rounds=tuple(ROUNDS), metrics={"accuracy": 0.75, "top 5, %": 0.5})
    tracking.finish(run)
    whole = expected(ROUNDS, run=run)
    whole["final/top 5_ _"] = whole.pop("final/top 5, %")
    assert figures_of(name, run_folder) == as_kept(name, whole)
    assert complaints == []


def test_quick_rounds_are_written_together_and_none_is_left(name: str, run_folder: Path) -> None:
    tracking, _ = follow(run_folder, [name])
    for one in ROUNDS:
        tracking.add(one)
    tracking.fail()
    assert figures_of(name, run_folder) == as_kept(name, expected(ROUNDS))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_run_that_goes_on_has_each_round_once(name: str, run_folder: Path, kept: int) -> None:
    """Rounds that a killed writer never brought to the store are there in the end."""
    first, _ = follow(run_folder, [name])
    for one in ROUNDS[:kept]:
        first.add(one)
    second, _ = follow(run_folder, [name], ROUNDS[:4])
    second.add(ROUNDS[4])
    second.fail()
    assert figures_of(name, run_folder) == as_kept(name, expected(ROUNDS))


@pytest.mark.usefixtures("at_once")
def test_a_round_that_is_played_again_replaces_what_was_written(
    name: str, run_folder: Path
) -> None:
    first, _ = follow(run_folder, [name])
    for one in ROUNDS[:4]:
        first.add(one)
    again = record(4, parties=("northampton",), bytes_sent=5, seconds={"train": 1.0, "other": 2.0})
    second, complaints = follow(run_folder, [name], ROUNDS[:3])
    second.add(again)
    second.fail()
    assert figures_of(name, run_folder) == as_kept(name, expected([*ROUNDS[:3], again]))
    assert complaints == []


@pytest.mark.usefixtures("at_once")
def test_a_run_that_ended_early_and_goes_on_keeps_its_store(
    name: str, run_folder: Path, run_record: Any
) -> None:
    first, _ = follow(run_folder, [name])
    for one in ROUNDS[:2]:
        first.add(one)
    early = run_record(rounds=tuple(ROUNDS[:2]), metrics={"accuracy": 0.5})
    first.finish(early)
    for _ in range(2):
        # Twice: a writer may be killed after the end.
        second, _ = follow(run_folder, [name], ROUNDS[:2])
        second.finish(early)
    third, _ = follow(run_folder, [name], ROUNDS[:2])
    third.add(ROUNDS[2])
    late = run_record(rounds=tuple(ROUNDS[:3]), metrics={"accuracy": 0.625})
    third.finish(late)
    figures = figures_of(name, run_folder)
    assert figures["final/accuracy"] == [(2, 0.5), (3, 0.625)]
    assert [number for number, _ in figures["accuracy"]] == [1, 2, 3]


def test_what_was_not_measured_is_not_there() -> None:
    bare = record(3, accuracy=None, loss=float("nan"), epsilon=None, seconds={})
    names = {point.name for point in round_points(bare)}
    assert names == {"parties", "bytes/sent", "bytes/received", "seconds/all"}


def test_a_run_without_rounds_and_without_privacy_has_an_end(run_record: Any, privacy: Any) -> None:
    run = run_record(rounds=(), privacy=privacy(epsilon=None), metrics={"loss": None})
    assert final_points(run) == []


def test_parameters_are_the_job_without_the_names_of_the_parties() -> None:
    assert parameters_of(JOB | {"x": None, "y": {"z": [1, 2], "on": True}}) == {
        "task": "digits",
        "task_options.a key_ with signs": 1,
        "parties.count": 2,
        "privacy.epsilon": 4.0,
        "privacy.unit": "record",
        "training.rounds": 5,
        "x": "none",
        "y.z": "[1, 2]",
        "y.on": True,
    }


def test_parameters_can_be_read_back(run_folder: Path) -> None:
    tracking, _ = follow(run_folder, ["tensorboard", "mlflow"])
    tracking.fail()
    (run,) = mlflow_runs(run_folder / "mlruns")
    assert run.data.params == {name: str(v) for name, v in parameters_of(JOB).items()}
    assert run.info.run_name == "a run"
    assert hyperparameters(run_folder / "tensorboard") == parameters_of(JOB)


def hyperparameters(folder: Path) -> dict[str, Any]:
    """Return what TensorBoard's page of hyperparameters shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    reader = EventAccumulator(str(folder))
    reader.Reload()
    content = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    values = HParamsPluginData.FromString(content).session_start_info.hparams
    assert b"training.rounds = 5" in reader.Tensors("job")[0].tensor_proto.string_val[0]
    kinds = {name: str(value.WhichOneof("kind")) for name, value in values.items()}
    return {name: getattr(values[name], kind) for name, kind in kinds.items()}


def test_no_name_of_a_party_and_no_memory_of_one_is_in_any_store(
    run_folder: Path, run_record: Any
) -> None:
    tracking, _ = follow(run_folder, ["tensorboard", "mlflow"])
    for one in ROUNDS:
        tracking.add(one)
    tracking.finish(run_record(rounds=tuple(ROUNDS), epsilon_by_party={"northampton": 1.0}))
    stored = [p for folder in FOLDERS.values() for p in (run_folder / folder).rglob("*")]
    files = [path for path in stored if path.is_file()]
    assert len(files) >= 2
    for path in files:
        content = path.read_bytes()
        assert b"hampton" not in content, path
        assert b"peak_rss" not in content, path
        assert b"7340032" not in content, path
        assert b"rounds" in content


def test_the_folder_names_no_host(run_folder: Path) -> None:
    import socket

    tracking, _ = follow(run_folder, ["tensorboard"])
    tracking.fail()
    (path,) = (run_folder / "tensorboard").iterdir()
    assert socket.gethostname() not in path.name


@pytest.mark.usefixtures("at_once")
def test_a_record_torn_by_a_full_disk_is_written_again(run_folder: Path) -> None:
    first, _ = follow(run_folder, ["tensorboard"])
    for one in ROUNDS[:3]:
        first.add(one)
    (path,) = (run_folder / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-7])
    second, _ = follow(run_folder, ["tensorboard"], ROUNDS[:3])
    second.fail()
    assert figures_of("tensorboard", run_folder) == as_kept("tensorboard", expected(ROUNDS[:3]))


def test_an_mlflow_run_says_how_it_goes(run_folder: Path, run_record: Any) -> None:
    def status() -> str:
        (run,) = mlflow_runs(run_folder / "mlruns")
        return str(run.info.status)

    first, _ = follow(run_folder, ["mlflow"])
    assert status() == "RUNNING"
    first.fail()
    assert status() == "FAILED"
    kept = json.loads((run_folder / "mlflow-run.json").read_text())
    second, _ = follow(run_folder, ["mlflow"])
    assert status() == "RUNNING"
    second.finish(run_record())
    assert status() == "FINISHED"
    assert json.loads((run_folder / "mlflow-run.json").read_text()) == kept


def test_a_run_folder_that_was_moved_takes_its_mlflow_run_with_it(run_folder: Path) -> None:
    first, _ = follow(run_folder, ["mlflow"], ROUNDS[:2])
    first.fail()
    moved = run_folder.rename(run_folder.with_name("moved"))
    second, _ = follow(moved, ["mlflow"], ROUNDS)
    second.fail()
    assert figures_of("mlflow", moved) == expected(ROUNDS)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"run_id": "none", "place": ""}'])
def test_a_damaged_note_of_the_mlflow_run_begins_a_new_one(run_folder: Path, kept: str) -> None:
    (run_folder / "mlflow-run.json").write_text(kept)
    tracking, complaints = follow(run_folder, ["mlflow"], ROUNDS)
    tracking.fail()
    assert complaints == []
    assert figures_of("mlflow", run_folder) == expected(ROUNDS)


def test_runs_that_share_a_place_keep_apart(run_folder: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        place = tmp_path / "shared"
        place.mkdir(exist_ok=True)
        if number == 1:
            shutil.copy(run_folder / "mlruns" / "mlflow.db", place)
        names = [f"tensorboard={place}", f"mlflow={place}"]
        tracking, complaints = follow(tmp_path / f"run-{number}", names, ROUNDS[:number])
        tracking.fail()
        assert complaints == []
    counts = {run.info.run_name: run.data.metrics["bytes/sent"] for run in mlflow_runs(place)}
    assert counts == {"run-1": 1001.0, "run-2": 1002.0}
    for number in (1, 2):
        found = tensorboard_figures(place / f"run-{number}")
        assert found == as_tensorboard_keeps(expected(ROUNDS[:number]))


@dataclass
class Broken:
    """A store that fails where it is told to."""

    fails_at: str
    calls: list[str] = field(default_factory=list)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise OSError(28, "No space left on device")

    def known(self) -> Mapping[str, set[int]]:
        self._call("known")
        return {}

    def start_over(self) -> None:
        self._call("start_over")

    def write(self, points: Sequence[Point]) -> None:
        self._call("write" if points and points[0].round else "begin")

    def close(self, outcome: Outcome) -> None:
        self._call(f"close {outcome}")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("fails_at", ["open", "known", "write", "close finished"])
def test_a_store_that_fails_is_told_once_and_left_out(
    fails_at: str, run_folder: Path, run_record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Broken(fails_at)

    def open_store(*_: object) -> Tracker:
        store._call("open")
        return store

    kind = tracker_choice._Kind("x", (), "x", open_store)
    monkeypatch.setitem(tracker_choice._KINDS, "broken", kind)
    tracking, complaints = follow(run_folder, ["broken", "tensorboard"])
    for one in ROUNDS:
        tracking.add(one)
    run = run_record(rounds=tuple(ROUNDS))
    tracking.finish(run)
    assert complaints == [("broken", "OSError: [Errno 28] No space left on device")]
    # Nothing follows a failure but the attempt to let it go.
    after = store.calls[store.calls.index(fails_at) + 1 :]
    assert after in ([], ["close failed"])
    whole = expected(ROUNDS, run=run)
    assert figures_of("tensorboard", run_folder) == as_kept("tensorboard", whole)


def test_a_full_disk_leaves_the_event_file_out(run_folder: Path) -> None:
    tracking, complaints = follow(run_folder, ["tensorboard"])
    (store,) = tracking._trackers.values()
    there: Any = store
    there._path = Path("/dev/full")
    tracking.add(ROUNDS[0])
    tracking.add(ROUNDS[1])
    tracking.fail()
    assert complaints == [("tensorboard", "OSError: [Errno 28] No space left on device")]


def test_a_place_that_can_not_be_made_leaves_the_tracker_out(run_folder: Path, name: str) -> None:
    (run_folder / "file").write_text("")
    tracking, complaints = follow(run_folder, [f"{name}={run_folder / 'file' / 'below'}"], ROUNDS)
    tracking.fail()
    assert [who for who, _ in complaints] == [name]
    assert "Not a directory" in complaints[0][1]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["wandb"], "no tracker is named 'wandb'; there are: mlflow, tensorboard"),
        ([""], "no tracker is named ''"),
        (["mlflow="], "give a path, or only --track mlflow"),
        (["mlflow=http://localhost:5000"], "a tracker writes to a folder"),
        (["mlflow", "mlflow=there"], "tracker 'mlflow' is named twice"),
        ([f"tensorboard={__file__}"], "is not a folder; name one, or a new path"),
    ],
)
def test_a_wrong_choice_is_refused(texts: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_choices(texts)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("tensorboard", "tensorboard"), ("mlflow", "mlflow"), ("mlflow", "alembic")],
)
def test_a_package_that_is_missing_is_named_before_anything_else(
    name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[str], object] = tracker_choice.find_spec
    monkeypatch.setattr(
        tracker_choice, "find_spec", lambda module: None if module == missing else find(module)
    )
    with pytest.raises(ConfigError, match=rf"\({missing}\); run: pip install 'mpcfl\[{name}\]'"):
        read_choices([name])


def test_a_choice_without_a_place_is_in_the_run_folder(tmp_path: Path) -> None:
    choices = read_choices(["tensorboard", f"mlflow={tmp_path}/x=y"])
    assert [str(one.store_folder(facts(tmp_path / "run"))) for one in choices] == [
        f"{tmp_path}/run/tensorboard",
        f"{tmp_path}/x=y",
    ]


def test_mlflow_tells_nobody(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.telemetry import client, utils

    # As outside of tests, where it would report what it is used for.
    monkeypatch.setattr(utils, "_IS_IN_CI_ENV_OR_TESTING", False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    client._set_telemetry_client(SimpleNamespace(info={"session_id": "one"}))
    assert not utils.is_telemetry_disabled()
    tracking, complaints = follow(run_folder, ["mlflow"], ROUNDS)
    tracking.fail()
    assert complaints == []
    assert utils.is_telemetry_disabled()
    assert client.get_telemetry_client() is None
