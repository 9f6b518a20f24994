"""The example of docs/how-to/flower.md: Flower's own loop and ours make the same model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpcfl.config import load_job
from mpcfl.learn.flower import ArrayModel, ClientContext
from mpcfl.round import PublicState, public_state, run_rounds

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "flower_digits"
MODULES = ("client", "federated")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return the module of the example's client, which imports Flower."""
    pytest.importorskip("flwr", reason="make setup installs Flower; pip alone can't")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import client

    yield client
    for name in MODULES:
        sys.modules.pop(name, None)


def plain_average(client: Any, arrays: list[Any], n_parties: int) -> list[Any]:
    """Do what Flower's FedAvg does in a round with equal numbers of examples."""
    trained = []
    for party in range(n_parties):
        node = {"partition-id": party, "num-partitions": n_parties}
        wrapped = client.client_fn(ClientContext(party, node, {"local-epochs": 2}))
        trained.append(wrapped.numpy_client.fit(arrays, {})[0])
    return [np.mean([t[index] for t in trained], axis=0, dtype=np.float64) for index in range(4)]


def test_each_round_is_flowers_average_up_to_quantization(client: Any) -> None:
    from flwr.client import NumPyClient

    job = load_job(EXAMPLE / "job.toml", ['aggregation.backend="plain"', "training.rounds=4"])
    start = public_state(job).model
    assert isinstance(start, ArrayModel)
    before, accuracies = [start.arrays()], []
    assert issubclass(client.FlowerClient, NumPyClient)

    def compare(round_id: int, _: object, public: PublicState) -> None:
        model = public.model
        assert isinstance(model, ArrayModel)
        expected = plain_average(client, before[-1], job.parties.count)
        # Each party's update is rounded by less than a level, and so is the mean; both models
        # are float32, which rounds weights below 4 by 2^-22 at most, before and after.
        bound = 1 / public.plan.scale + 4 * 2.0**-22
        for found, wanted in zip(model.arrays(), expected, strict=True):
            assert found.dtype == np.float32
            assert np.abs(wanted).max() < 4
            assert np.abs(found - wanted).max() <= bound
        assert np.abs(model.arrays()[0] - before[-1][0]).max() > 100 * bound
        before.append(model.arrays())
        accuracies.append(public.task.measure(model, round_id + 1)["accuracy"])  # type: ignore[attr-defined]  # it has it

    run_rounds(job, after_round=compare)
    assert len(accuracies) == 4
    # Ten classes: chance is 0.1.
    assert accuracies[-1] > 0.85
