"""A checkpoint holds public state, comes back bit for bit, and is refused if anything is off."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.config import parse_job
from mpcfl.dp.counts import CountState
from mpcfl.errors import ConfigError
from mpcfl.learn.apply import ServerState
from mpcfl.learn.model import flat_parameters, load_flat_parameters
from mpcfl.report import checkpoint as module
from mpcfl.report.checkpoint import load_checkpoint, restore, save_checkpoint
from mpcfl.round import PublicState, public_state

JOB = {
    "task": "toy",
    "parties": {"count": 2},
    "privacy": {"unit": "none"},
    "training": {"rounds": 10},
    "aggregation": {"backend": "plain"},
}


def state(**changes: Any) -> PublicState:
    return public_state(parse_job({**JOB, **changes}, "inline"))


@pytest.fixture
def trained() -> PublicState:
    public = state()
    public.parameters = np.array([0.1, -1 / 3, 1e-300])
    load_flat_parameters(public.model, public.parameters)
    public.server = ServerState(np.array([1 / 7, 0.0, -5.0]), np.array([1e-6, 2.0, 3.0]))
    public.counted = CountState(0.1 + 0.2, 1 / 3, 4)
    return public


@pytest.fixture
def folder(tmp_path: Path, trained: PublicState) -> Path:
    save_checkpoint(tmp_path / "checkpoint", trained, 4)
    return tmp_path / "checkpoint"


def test_the_public_state_comes_back_bit_for_bit(folder: Path, trained: PublicState) -> None:
    fresh = state()
    found = load_checkpoint(folder)
    restore(fresh, found)
    assert found.facts.next_round == 4
    for name in ("first_moment", "second_moment"):
        assert getattr(fresh.server, name).tobytes() == getattr(trained.server, name).tobytes()
    assert fresh.parameters.tobytes() == trained.parameters.tobytes()
    assert fresh.counted == trained.counted
    assert flat_parameters(fresh.model).tobytes() == flat_parameters(trained.model).tobytes()


def test_a_step_that_remembers_nothing_stores_nothing(tmp_path: Path) -> None:
    public = state()
    save_checkpoint(tmp_path / "c", public, 1)
    fresh = state()
    restore(fresh, load_checkpoint(tmp_path / "c"))
    assert (fresh.server.first_moment.size, fresh.server.second_moment.size) == (0, 0)
    assert fresh.parameters.tobytes() == public.parameters.tobytes()


@pytest.mark.parametrize("lost", ["first_moment", "second_moment"])
def test_a_checkpoint_without_what_the_optimizer_needs_is_refused(
    lost: str, tmp_path: Path
) -> None:
    server = {"optimizer": "fedadam", "learning_rate": 0.1}
    public = state(server=server)
    public.server = dataclasses.replace(public.server, **{lost: np.empty(0)})
    save_checkpoint(tmp_path / "c", public, 1)
    with pytest.raises(ConfigError, match="another optimizer"):
        restore(state(server=server), load_checkpoint(tmp_path / "c"))


def test_vectors_go_to_the_file_without_a_copy_of_all_of_them(tmp_path: Path) -> None:
    public = state()
    public.parameters = np.arange(8_000_000.0)
    tracemalloc.start()
    try:
        name = tmp_path / "state.npz"
        digest = module._write_vectors(name, public)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert digest == hashlib.sha256(name.read_bytes()).hexdigest()
    with np.load(name) as arrays:
        assert arrays["parameters"].tobytes() == public.parameters.tobytes()
    # numpy hands over 16 MiB at a time.
    assert peak < 0.75 * public.parameters.nbytes


def test_an_infinite_clip_norm_comes_back(tmp_path: Path) -> None:
    public = state()
    assert public.counted.clip_norm == float("inf")
    save_checkpoint(tmp_path / "c", public, 0)
    fresh = state()
    restore(fresh, load_checkpoint(tmp_path / "c"))
    assert fresh.counted == public.counted


def test_it_holds_public_state_only(folder: Path) -> None:
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["checkpoint.json", "state-000004.npz"]
    assert set(json.loads((folder / "checkpoint.json").read_text())) == {
        *("schema", "next_round", "clip_norm", "weight_sum", "weight_rounds", "job_digest"),
        *("plan_fingerprint", "model_digest", "arrays_name", "arrays_sha256", "digest"),
    }
    with zipfile.ZipFile(folder / files[1]) as archive:
        names = set(archive.namelist())
    assert names == {"parameters.npy", "first_moment.npy", "second_moment.npy"}


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_crash_while_saving_leaves_the_old_one(
    step: int, folder: Path, trained: PublicState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails at the first, second or third file that is flushed or named."""
    before = load_checkpoint(folder)
    calls = 0
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    trained.parameters = trained.parameters + 1
    with pytest.raises(ConfigError, match="can't write the checkpoint: Input/output error"):
        save_checkpoint(folder, trained, 5)
    monkeypatch.undo()
    found = load_checkpoint(folder)
    assert found.facts == before.facts
    assert found.parameters.tobytes() == before.parameters.tobytes()


def test_a_new_one_takes_the_place_of_the_old(folder: Path, trained: PublicState) -> None:
    save_checkpoint(folder, trained, 5)
    assert load_checkpoint(folder).facts.next_round == 5
    assert [file.name for file in folder.glob("*.npz")] == ["state-000005.npz"]


def change(folder: Path, **values: Any) -> None:
    document = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps({**document, **values}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_vectors(folder: Path) -> None:
    """Put whole vectors in the place of those that were written."""
    with (folder / "state-000004.npz").open("wb") as stream:
        names = ("parameters", "first_moment", "second_moment")
        np.savez(stream, **dict.fromkeys(names, np.ones(3)))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "another round": lambda f: change(f, next_round=3),
    "another clip norm": lambda f: change(f, clip_norm="0x1.0p+9"),
    "another schema": lambda f: change(f, schema="mpcfl.checkpoint/9"),
    "a further key": lambda f: change(f, noise=[1]),
    "another file": lambda f: change(f, arrays_name="../job.json"),
    "no JSON": lambda f: (f / "checkpoint.json").write_text("{"),
    "a list": lambda f: (f / "checkpoint.json").write_text("[]"),
    "no facts": lambda f: (f / "checkpoint.json").unlink(),
    "no vectors": lambda f: (f / "state-000004.npz").unlink(),
    "a flipped bit": lambda f: flip(f / "state-000004.npz"),
    "other vectors": other_vectors,
    "an emptied file": lambda f: (f / "state-000004.npz").write_bytes(b""),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_the_reason(name: str, folder: Path) -> None:
    DAMAGES[name](folder)
    with pytest.raises(ConfigError, match=r"checkpoint.*restore the folder from a copy"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "vectors",
    [
        {"parameters": np.zeros(3, dtype=np.float32)},
        {"first_moment": np.zeros(4)},
        {"second_moment": np.zeros((3, 1))},
        {"parameters": np.array([{}, {}, {}], dtype=object)},
    ],
)
def test_vectors_of_another_kind_are_refused(
    vectors: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    savez = np.savez
    monkeypatch.setattr(module.np, "savez", lambda to, **arrays: savez(to, **{**arrays, **vectors}))
    save_checkpoint(folder, state(), 5)
    with pytest.raises(ConfigError, match="the checkpoint is damaged"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"rounds": 11}}, "another job"),
        ({"training": {"rounds": 10, "seed": 5}}, "another job"),
        ({"task": "digits", "privacy": {"unit": "none"}}, "another model"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_changes_nothing(
    changes: dict[str, Any], words: str, folder: Path
) -> None:
    public = state(**changes)
    before = public.parameters.copy()
    with pytest.raises(ConfigError, match=f"the checkpoint is of {words} than this run"):
        restore(public, load_checkpoint(folder))
    assert public.parameters.tobytes() == before.tobytes()


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        ({"plan_fingerprint": "00"}, "another noise plan"),
        ({"model_digest": "00"}, "another model"),
        ({"next_round": 11}, "another number of rounds"),
        ({"next_round": -1}, "another number of rounds"),
    ],
)
def test_facts_that_do_not_fit_are_refused(fact: dict[str, Any], words: str, folder: Path) -> None:
    found = load_checkpoint(folder)
    other = dataclasses.replace(found, facts=dataclasses.replace(found.facts, **fact))
    with pytest.raises(ConfigError, match=words):
        restore(state(), other)


def test_facts_may_not_name_a_file_elsewhere(folder: Path) -> None:
    """Not even with a digest that matches, which anybody can compute."""
    facts = dataclasses.replace(load_checkpoint(folder).facts, arrays_name="../state-000004.npz")
    (folder / "state-000004.npz").rename(folder.parent / "state-000004.npz")
    change(folder, arrays_name=facts.arrays_name, digest=facts.digest())
    with pytest.raises(ConfigError, match="a file of vectors that no checkpoint has"):
        load_checkpoint(folder)
