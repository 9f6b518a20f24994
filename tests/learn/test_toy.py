"""The toy task against PySyft's tutorial, written out in plain PyTorch with its own names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn, optim

from mpcfl.config import ServerTable, TrainingTable
from mpcfl.learn.apply import apply_mean, initial_state
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.model import flat_parameters, initial_model, load_flat_parameters
from mpcfl.learn.tasks.toy import ToyTask
from mpcfl.learn.train import local_update

ROUNDS, LOCAL_STEPS = 10, 5
TRAINING = TrainingTable(rounds=ROUNDS, local_steps=LOCAL_STEPS, batch_size=2, learning_rate=0.1)


def tutorial_losses(model: nn.Module) -> list[float]:
    data = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1.0]])
    target = torch.tensor([[0], [0], [1], [1.0]])
    losses = []
    for _ in range(ROUNDS):
        copies = []
        for rows in (slice(0, 2), slice(2, 4)):
            local = copy.deepcopy(model)
            opt = optim.SGD(params=local.parameters(), lr=0.1)
            for _ in range(LOCAL_STEPS):
                opt.zero_grad()
                ((local(data[rows]) - target[rows]) ** 2).sum().backward()
                opt.step()
            copies.append(local)
        bob, alice = copies
        with torch.no_grad():
            model.weight.copy_((alice.weight + bob.weight) / 2)
            model.bias.copy_((alice.bias + bob.bias) / 2)
            losses.append(float(((model(data) - target) ** 2).sum()))
    return losses


def our_losses(task: ToyTask, model: nn.Module) -> list[float]:
    server = ServerTable()
    parameters, state = flat_parameters(model), initial_state(3, server)
    losses = [evaluate(model, task)["loss"]]
    for round_id in range(ROUNDS):
        updates = [
            local_update(model, task.party_data(party, 2), task, TRAINING, round_id)
            for party in range(2)
        ]
        mean = np.concatenate(updates).mean(axis=0)
        parameters, state = apply_mean(parameters, mean, state, server)
        load_flat_parameters(model, parameters)
        losses.append(evaluate(model, task)["loss"])
    return losses


@pytest.mark.parametrize("seed", range(5))
def test_toy_reproduces_the_tutorials_loss_curve(seed: int) -> None:
    task = ToyTask()
    ours = our_losses(task, initial_model(task, seed))
    theirs = tutorial_losses(initial_model(task, seed))
    # 50 steps in float32 on values near 1, whose rounding errors descent does not amplify.
    tolerance = ROUNDS * LOCAL_STEPS * 4 * float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(ours[1:], theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seed", range(5))
def test_toy_loss_falls_in_every_round(seed: int) -> None:
    task = ToyTask()
    losses = our_losses(task, initial_model(task, seed))
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == ROUNDS + 1


def test_bob_holds_the_first_two_rows_and_alice_the_last_two() -> None:
    task = ToyTask()
    assert task.party_data(0, 2)[0].tolist() == [[0, 0], [0, 1]]
    assert task.party_data(1, 2)[0].tolist() == [[1, 0], [1, 1]]


def test_more_parties_than_rows_leave_some_without_data() -> None:
    sizes = [len(ToyTask().party_data(party, 5)[0]) for party in range(5)]
    assert sum(sizes) == 4
    assert 0 in sizes
