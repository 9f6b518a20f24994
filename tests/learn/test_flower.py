"""Flower clients as tasks: by Flower's real class, and by their shape."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.flower import ArrayModel, FlowerTask
from mpcfl.learn.model import initial_model, model_digest
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Task, TrainsItself
from mpcfl.round import PublicState, public_state, run_round, run_rounds

N_PARTIES = 3
WEIGHTS = np.array([[0.5, -1.0], [0.25, 2.0]], dtype=np.float32)
BATCHES = np.array(0)


class Client:
    """Adds its party's number plus one to every weight, and counts a batch; no class of Flower's.

    Attributes:
        made: contexts of all clients, in the order in which they were made.
        fitted: what `fit` was called with.
    """

    made: list[Any]
    fitted: list[tuple[list[NDArray[Any]], dict[str, Any]]]

    def __init__(self, party: int) -> None:
        self.party = party

    def get_parameters(self, config: dict[str, Any]) -> list[NDArray[Any]]:
        raise AssertionError("nobody asks a client for its parameters")

    def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> Any:
        Client.fitted.append(([array.copy() for array in parameters], config))
        weights, batches = parameters
        return [weights + self.party + 1, batches + 7], 10, {"loss": 0.5}

    def evaluate(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> Any:
        raise AssertionError("what a client measures is its own data")


@pytest.fixture(autouse=True)
def forget_clients() -> None:
    Client.made, Client.fitted = [], []


def client_fn(context: Any) -> Any:
    Client.made.append(context)
    return Client(context.node_config["partition-id"])


def task_of(make: Any = client_fn, **more: Any) -> FlowerTask:
    return FlowerTask(make, lambda: [WEIGHTS, BATCHES], **more)


def job_of(unit: str = "none", **tables: dict[str, Any]) -> Job:
    document = {
        "task": "some:client",
        "parties": {"count": N_PARTIES} | tables.get("parties", {}),
        "privacy": {"unit": unit, "clip_norm": 0.5}
        | ({} if unit == "none" else {"epsilon": 4.0})
        | tables.get("privacy", {}),
        "training": {"rounds": 2} | tables.get("training", {}),
        "aggregation": {"backend": "plain", "modulus_bits": 32},
    }
    return parse_job(document, "test")


def run(task: FlowerTask, monkeypatch: pytest.MonkeyPatch, job: Job | None = None) -> PublicState:
    monkeypatch.setattr("mpcfl.round.load_task", lambda *_: task)
    return run_rounds(job_of() if job is None else job)


def test_task_satisfies_the_protocols() -> None:
    task = task_of()
    assert isinstance(task, Task)
    assert isinstance(task, TrainsItself)


def test_model_moves_by_the_mean_of_what_clients_change(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even where Flower can't be imported is it missed.
    monkeypatch.setitem(sys.modules, "flwr", None)
    public = run(task_of(), monkeypatch)
    assert isinstance(public.model, ArrayModel)
    weights, _ = public.model.arrays()
    # Parties add 1, 2 and 3 in each of two rounds; a level is far below float32's precision here.
    np.testing.assert_allclose(weights, WEIGHTS + 2 * 2.0, rtol=0, atol=1e-4)
    assert weights.dtype == np.float32


def test_arrays_of_integers_stay_as_they_were_and_never_travel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = run(task_of(), monkeypatch)
    assert isinstance(public.model, ArrayModel)
    assert public.plan.dim == WEIGHTS.size
    assert public.model.arrays()[1] == BATCHES
    # Every client gets the initial value in every round, whatever clients made of it.
    assert [int(arrays[1]) for arrays, _ in Client.fitted] == [0] * 2 * N_PARTIES
    assert all(arrays[1].dtype == BATCHES.dtype for arrays, _ in Client.fitted)


def test_a_client_is_made_anew_for_every_round_with_the_same_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(task_of(local_epochs=3), monkeypatch)
    assert len(Client.made) == 2 * N_PARTIES
    assert len({id(context) for context in Client.made}) == N_PARTIES
    assert {context.node_config["partition-id"] for context in Client.made} == {0, 1, 2}
    for context in Client.made:
        assert context.node_config["num-partitions"] == N_PARTIES
        assert context.run_config == {"local_epochs": 3}


def test_fit_is_told_the_round_or_what_the_job_says(monkeypatch: pytest.MonkeyPatch) -> None:
    run(task_of(), monkeypatch)
    assert sorted(config["server_round"] for _, config in Client.fitted) == [1, 1, 1, 2, 2, 2]
    Client.fitted = []
    run(task_of(on_fit_config_fn=lambda number: {"lr": 1 / number}), monkeypatch)
    assert sorted(config["lr"] for _, config in Client.fitted) == [0.5] * 3 + [1.0] * 3


def by_partition_id(partition_id: int) -> Client:
    assert isinstance(partition_id, int)
    return Client(partition_id)


def by_cid(cid: str) -> Client:
    assert isinstance(cid, str)
    return Client(int(cid))


def by_annotation(number: int) -> Client:
    return Client(number)


class Wrapper:
    """As what Flower's `to_client` returns: it keeps the NumPyClient under this name."""

    def __init__(self, client: Client) -> None:
        self.numpy_client = client

    def fit(self, ins: object) -> object:
        raise AssertionError("that is another protocol")


def wrapped(context: Any) -> Wrapper:
    return Wrapper(client_fn(context))


@pytest.mark.parametrize("make", [by_partition_id, by_cid, by_annotation, wrapped])
def test_older_shapes_of_client_fn_and_wrapped_clients_work(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = run(task_of(make), monkeypatch)
    assert isinstance(public.model, ArrayModel)
    np.testing.assert_allclose(public.model.arrays()[0], WEIGHTS + 4.0, rtol=0, atol=1e-4)


class OtherProtocol:
    """As Flower's Client: what it is given is one message."""

    def fit(self, ins: object) -> object:
        raise AssertionError("nobody speaks to it")


@pytest.mark.parametrize("made", [object(), OtherProtocol(), None])
def test_what_is_no_client_is_refused_by_name(made: object) -> None:
    with pytest.raises(ConfigError, match=r"is no NumPyClient.*fit\(parameters, config\)"):
        task_of(lambda context: made).party_data(0, N_PARTIES)


class Parameters:
    """As Flower's: each tensor is the bytes of a .npy file."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self.tensors, self.tensor_type = [], "numpy.ndarray"
        for array in arrays:
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            self.tensors.append(stream.getvalue())


@pytest.mark.parametrize(
    "initial", [[WEIGHTS, BATCHES], lambda: [WEIGHTS, BATCHES], Parameters([WEIGHTS, BATCHES])]
)
def test_initial_parameters_come_in_any_of_three_forms(initial: Any) -> None:
    model = FlowerTask(client_fn, initial).model()
    assert isinstance(model, ArrayModel)
    for array, expected in zip(model.arrays(), [WEIGHTS, BATCHES], strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_initial_parameters_follow_from_the_seed() -> None:
    task = FlowerTask(client_fn, lambda: [torch.rand(4).numpy()])
    digests = [model_digest(initial_model(task, seed)) for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_initial_parameters_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="parameter 0 has dtype"):
        FlowerTask(client_fn, [np.array(["a"])]).model()


def test_public_figures_are_those_of_evaluate_fn() -> None:
    seen = []

    def evaluate_fn(server_round: int, parameters: Any, config: Any) -> Any:
        seen.append((server_round, [array.copy() for array in parameters], config))
        return (0.25, {"accuracy": np.float32(0.5)}) if server_round else None

    task = task_of(evaluate_fn=evaluate_fn)
    assert evaluate(task.model(), task) == {}
    assert evaluate(task.model(), task, rounds_done=2) == {"loss": 0.25, "accuracy": 0.5}
    assert [number for number, _, _ in seen] == [0, 2]
    np.testing.assert_array_equal(seen[1][1][0], WEIGHTS)
    assert evaluate(task_of().model(), task_of()) == {}


class Failing(Client):
    """Party 1's client does not do what it should.

    Attributes:
        how: what it does instead.
    """

    how: Any = None

    def fit(self, parameters: list[NDArray[Any]], config: dict[str, Any]) -> Any:
        done = super().fit(parameters, config)
        return self.how(parameters, done) if self.party == 1 else done


def _raises(parameters: Any, done: Any) -> Any:
    raise RuntimeError("row 17 of patient Smith")


def _leaves(parameters: Any, done: Any) -> Any:
    sys.exit(3)


FAILURES = {
    "raises": _raises,
    "leaves": _leaves,
    "nothing": lambda parameters, done: None,
    "too few arrays": lambda parameters, done: (done[0][:1], 10, {}),
    "another shape": lambda parameters, done: ([done[0][0].T[:1], done[0][1]], 10, {}),
    "no numbers": lambda parameters, done: ([np.full((2, 2), "x"), done[0][1]], 10, {}),
}
NOT_FINITE = {
    "nan": lambda parameters, done: ([done[0][0] * np.nan, done[0][1]], 10, {}),
    "infinite": lambda parameters, done: ([done[0][0] + np.inf, done[0][1]], 10, {}),
}
NOTHING_LEARNT = {"same": lambda parameters, done: (parameters, 10, {})}


def opened_with(how: Any, unit: str, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.int64]:
    from mpcfl.hazmat.bits import raw_keyed_bits

    monkeypatch.setattr(Failing, "how", staticmethod(how))
    task = task_of(lambda context: Failing(context.node_config["partition-id"]))
    monkeypatch.setattr("mpcfl.round.load_task", lambda *_: task)
    bits = [raw_keyed_bits(bytes([1 + party]) * 32) for party in range(N_PARTIES)]
    return run_round(job_of(unit), bits).opened


@pytest.mark.parametrize("how", [*FAILURES, *NOT_FINITE])
def test_at_party_level_a_client_that_fails_contributes_zero_but_noise(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_zero = opened_with(NOTHING_LEARNT["same"], "party", monkeypatch)
    found = opened_with((FAILURES | NOT_FINITE)[how], "party", monkeypatch)
    np.testing.assert_array_equal(found, with_zero)
    # The comparison sees one client: what it would have added changes the sum.
    learnt = opened_with(lambda parameters, done: done, "party", monkeypatch)
    assert np.any(learnt != with_zero)


@pytest.mark.parametrize("how", FAILURES)
def test_without_privacy_a_client_that_fails_is_an_error(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((ConfigError, RuntimeError, ValueError, TypeError)):
        opened_with(FAILURES[how], "none", monkeypatch)


def test_at_party_level_nothing_is_seen_of_what_a_client_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def talks(parameters: Any, done: Any) -> Any:
        print("loss 0.123")
        print("row 17", file=sys.stderr)
        return done

    opened_with(talks, "party", monkeypatch)
    assert capsys.readouterr() == ("", "")
    opened_with(talks, "none", monkeypatch)
    assert capsys.readouterr() == ("loss 0.123\n", "row 17\n")


def test_public_weights_average_as_flower_does_by_numbers_of_examples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(parties={"weighting": "public", "weights": [10, 20, 30]})
    public = run(task_of(), monkeypatch, job)
    assert isinstance(public.model, ArrayModel)
    mean = np.average([1.0, 2.0, 3.0], weights=[10, 20, 30])
    np.testing.assert_allclose(public.model.arrays()[0], WEIGHTS + 2 * mean, rtol=0, atol=1e-4)


def test_private_weights_come_from_num_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("party", parties={"weighting": "private", "max_records": 100})
    with pytest.raises(ConfigError, match="num_examples"):
        public_state(job, task_of())
    task = task_of(num_examples=lambda context: 10 * (1 + context.node_id))
    assert public_state(job, task).plan.vector_dim > WEIGHTS.size
    assert [len(task.party_data(party, N_PARTIES)[0]) for party in range(N_PARTIES)] == [10, 20, 30]


def test_by_name_a_function_makes_the_task_and_options_are_its_run_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_flower.py").write_text(
        "import mpcfl\n"
        "def clients(**run_config):\n"
        "    return mpcfl.FlowerTask(lambda context: None, [[0.5]], **run_config)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_flower", raising=False)
    task: Any = load_task("own_flower:clients", {"local-epochs": 2})
    assert isinstance(task, FlowerTask)
    assert task._run_config == {"local-epochs": 2}


def test_a_context_has_flowers_own_state_where_flower_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = pytest.importorskip("flwr.common")
    task = task_of()
    task.party_data(0, 1)
    assert isinstance(Client.made[-1].state, common.RecordDict)
    monkeypatch.delitem(sys.modules, "flwr.common")
    task.party_data(0, 1)
    assert Client.made[-1].state == {}
