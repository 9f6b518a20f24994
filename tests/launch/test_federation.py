"""`mpcfl.Federation`: whole jobs in this process, as a notebook runs them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mpcfl
from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.hazmat.bits import raw_keyed_bits
from mpcfl.learn.model import model_digest
from mpcfl.parties.in_one_process import InProcess, run_in_process
from mpcfl.report.run_folder import RunFolder
from mpcfl.report.run_record import RunRecord
from mpcfl.round import run_round, run_rounds

N_PARTIES = 3


class Line:
    """Four records each; a model of two weights and a bias."""

    def __init__(self, *, shift: float = 0.25) -> None:
        self.shift = shift

    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.arange(8.0).reshape(4, 2) / 8 - 0.5 + party / n_parties
        return inputs, inputs.sum(dim=1, keepdim=True) + self.shift

    def test_data(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.party_data(0, 1)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(outputs, targets)


class FailsAtPartyOne(Line):
    def party_data(self, party: int, n_parties: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = super().party_data(party, n_parties)
        return (inputs, torch.full_like(targets, 7.0)) if party == 1 else (inputs, targets)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if (targets == 7.0).any():
            raise ZeroDivisionError("of the task")
        return super().loss(outputs, targets)


def document(unit: str = "none", **tables: dict[str, Any]) -> dict[str, Any]:
    privacy: dict[str, Any] = {"unit": unit}
    if unit != "none":
        privacy["epsilon"] = 4.0
    if unit == "record":
        privacy["records"] = 12
    return {
        "parties": {"count": N_PARTIES},
        "privacy": privacy | tables.get("privacy", {}),
        "training": {"rounds": 2} | tables.get("training", {}),
        "aggregation": {"backend": "ring"} | tables.get("aggregation", {}),
    }


def named(job: dict[str, Any]) -> Job:
    return parse_job(job | {"task": "some:line"}, "test")


@pytest.fixture(autouse=True)
def no_thread_stays() -> Any:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page for people, which takes a while."""
    monkeypatch.setattr(
        "mpcfl.report.html.write_run_report", lambda _, path: path.write_text("<p class='a'>")
    )


@pytest.mark.usefixtures("no_page")
def test_without_privacy_the_model_is_that_of_the_specification(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = document(training={"rounds": 3, "local_steps": 4})
    result = mpcfl.Federation(Line, job).run(on_round=lambda _: None)
    monkeypatch.setattr("mpcfl.round.load_task", lambda *_: Line())
    public = run_rounds(named(job))
    assert model_digest(result.model) == model_digest(public.model)
    assert result.record.model_sha256 == model_digest(result.model).hex()


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("unit", ["record", "party"])
def test_with_privacy_equal_bits_make_the_model_of_the_specification(
    unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = named(document(unit, training={"rounds": 1}))

    def bits() -> list[Any]:
        return [raw_keyed_bits(bytes([1 + party]) * 32) for party in range(N_PARTIES)]

    monkeypatch.setattr("mpcfl.round.load_task", lambda *_: Line())
    expected = run_round(job, bits())
    what = InProcess(job, tmp_path / "out", Line, bits=bits())
    rank = run_in_process(what, lambda _: None)
    np.testing.assert_array_equal(rank.public.parameters, expected.parameters)


@pytest.mark.usefixtures("no_page")
def test_without_injected_bits_no_two_runs_are_alike() -> None:
    federation = mpcfl.Federation(Line, document("party"))
    first, second = (federation.run(on_round=lambda _: None) for _ in range(2))
    assert model_digest(first.model) != model_digest(second.model)
    # Each run's ledger begins anew.
    assert first.epsilon == second.epsilon == pytest.approx(4.0, rel=1e-3)


@pytest.mark.usefixtures("no_page")
def test_rounds_are_told_here_one_by_one_and_nothing_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []
    result = mpcfl.Federation(Line, document("party")).run(
        on_round=lambda done: seen.append((done, threading.current_thread()))
    )
    assert [done for done, _ in seen] == list(result.rounds)
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert capsys.readouterr().out == ""
    assert [done.round for done in result.rounds] == [1, 2]
    assert result.rounds[0].epsilon < result.rounds[1].epsilon == result.epsilon
    for done, kept in zip(result.rounds, result.record.rounds, strict=True):
        assert done.metrics["loss"] == kept.loss
        assert done.bytes_sent == kept.bytes_sent > 0
        assert done.seconds["train"] > 0
    assert result.metrics == result.rounds[-1].metrics


@pytest.mark.usefixtures("no_page")
def test_without_a_callback_lines_are_printed_and_no_folder_that_is_gone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = mpcfl.Federation(Line, document()).run()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("tests.launch.test_federation:Line: 3 parties")
    assert lines[1].startswith("round 1/2  loss")
    assert lines[3].startswith("done: 2 rounds")
    assert "see" not in lines[3]
    assert result.folder is None
    assert not list(tmp_path.glob("mpcfl-*"))


def test_with_a_folder_all_stays_that_a_run_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation = mpcfl.Federation(Line, document("party"), out=tmp_path / "out")
    result = federation.run()
    assert f"see {(tmp_path / 'out').resolve()}/report.html" in capsys.readouterr().out
    folder = RunFolder(tmp_path / "out")
    assert RunRecord.load(folder.run_json) == result.record
    assert folder.report_html.read_text() == result.report
    state = torch.load(folder.model_pt, weights_only=True)
    assert all(torch.equal(state[n], value) for n, value in result.model.state_dict().items())
    assert len(list((tmp_path / "out" / "ledger").glob("party-*.jsonl"))) == N_PARTIES
    # Nothing is overwritten.
    with pytest.raises(ConfigError, match="not empty"):
        federation.run()
    page = result._repr_html_()
    assert page.startswith("<iframe srcdoc=")
    assert page.count('"') == 4
    assert "&lt;html" in page


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize(
    ("task", "shift"),
    [(Line, 0.5), (partial(Line, shift=0.75), 0.5), (lambda **options: Line(**options), 0.5)],
)
def test_what_makes_tasks_gets_the_options_of_the_job(task: Any, shift: float) -> None:
    seen: list[float] = []

    class Noted(Line):
        def model(self) -> nn.Module:
            seen.append(self.shift)
            return super().model()

    made = Noted if task is Line else lambda **options: Noted(shift=task(**options).shift)
    job = document() | {"task_options": {"shift": shift}}
    mpcfl.Federation(made, job).run(on_round=lambda _: None)
    # Each party makes its own.
    assert seen == [shift] * N_PARTIES


@pytest.mark.usefixtures("no_page")
def test_one_object_serves_all_parties() -> None:
    result = mpcfl.Federation(Line(shift=0.5), document()).run(on_round=lambda _: None)
    same = mpcfl.Federation(partial(Line, shift=0.5), document()).run(on_round=lambda _: None)
    assert model_digest(result.model) == model_digest(same.model)
    with pytest.raises(ConfigError, match="an object already"):
        mpcfl.Federation(Line(), document() | {"task_options": {"shift": 0.5}})


def test_what_is_no_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"object has no method model\(\)"):
        mpcfl.Federation(object(), document())


def test_a_job_comes_in_any_of_four_forms(tmp_path: Path) -> None:
    assert mpcfl.Federation(None, "digits").job.task == "digits"
    assert mpcfl.Federation("toy", "digits").job.task == "toy"
    path = tmp_path / "line.toml"
    path.write_text('[parties]\ncount = 2\n[privacy]\nunit = "none"\n[training]\nrounds = 3\n')
    with path.open("a") as stream:
        stream.write('[aggregation]\nbackend = "plain"\n')
    for form in (path, str(path)):
        job = mpcfl.Federation(Line, form, overrides=["training.rounds=5"]).job
        assert job.training.rounds == 5
        assert job.task == "tests.launch.test_federation:Line"
    assert mpcfl.Federation(Line, named(document())).job.parties.count == N_PARTIES
    with pytest.raises(ConfigError, match="change the dict"):
        mpcfl.Federation(Line, document(), overrides=["training.rounds=5"])
    with pytest.raises(ConfigError, match="no such job file"):
        mpcfl.Federation(Line, "no-such-job")


@pytest.mark.usefixtures("no_page")
def test_a_comparison_backend_is_refused_unless_asked_for() -> None:
    job = document("party", aggregation={"backend": "plain"})
    with pytest.raises(ConfigError, match="lets others see"):
        mpcfl.Federation(Line, job).run()
    result = mpcfl.Federation(Line, job, insecure=True).run(on_round=lambda _: None)
    assert result.epsilon is not None
    assert result.epsilon > 4.0


@pytest.mark.usefixtures("no_page")
def test_a_run_stops_at_its_budget() -> None:
    job = document("party", privacy={"noise_multiplier": 3.0}, training={"rounds": 50})
    result = mpcfl.Federation(Line, job).run(on_round=lambda _: None)
    assert 0 < len(result.rounds) < 50
    assert result.epsilon is not None
    assert result.epsilon <= 4.0
    assert result.record.stopped_early is not None


@pytest.mark.usefixtures("no_page")
def test_a_callback_that_raises_ends_the_run() -> None:
    def on_round(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mpcfl.Federation(Line, document(training={"rounds": 10_000})).run(on_round)


@pytest.mark.usefixtures("no_page")
def test_what_a_task_raises_ends_the_run_where_nothing_is_hidden() -> None:
    with pytest.raises(ZeroDivisionError, match="of the task"):
        mpcfl.Federation(FailsAtPartyOne, document()).run(on_round=lambda _: None)


@pytest.mark.usefixtures("no_page")
def test_each_party_computes_in_one_thread_as_under_mpirun() -> None:
    seen = []

    class Noted(Line):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().loss(outputs, targets)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        mpcfl.Federation(Noted, document()).run(on_round=lambda _: None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    # The first few were in trying the model out.
    assert set(seen[-2 * N_PARTIES :]) == {1}


def test_it_can_do_without_mpi() -> None:
    """Loading mpi4py would start MPI in the notebook's process."""
    code = "import sys; sys.modules['mpi4py'] = None; import mpcfl; mpcfl.Federation"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
