"""Mistake 19: both factors of a low-rank adapter are averaged, which is not the mean of products.

Who made it: APPFL PR#398 and many adapters in federated learning: mean(B) mean(A) != mean(B A).
What goes wrong: parties that learnt B_i A_i get a product that none of them learnt (here 58 % of
the way off after one round of three parties), and noise in both factors multiplies. What would
have to break here: a frozen factor (A, as in FFA-LoRA) is sent, noised or changed, or the trained
factor's mean is not the mean of the updates.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mpcfl.learn.model import flat_parameters, initial_model, load_flat_parameters
from mpcfl.learn.train import local_update
from mpcfl.round import run_round

N_INPUTS, RANK, N_OUTPUTS = 4, 2, 3


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter: x W^T + x A^T B^T."""

    def __init__(self, train_a: bool) -> None:
        super().__init__()
        self.frozen = nn.Linear(N_INPUTS, N_OUTPUTS).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(RANK, N_INPUTS) / 4, requires_grad=train_a)
        self.b = nn.Parameter(torch.zeros(N_OUTPUTS, RANK))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen(inputs) + inputs @ self.a.T @ self.b.T

    def product(self) -> np.ndarray:
        return (self.b.double() @ self.a.double()).detach().numpy()


@pytest.fixture
def adapter_tasks(line_task):
    """Return the task with A frozen, and the mistaken one that trains both factors."""

    class FrozenA(line_task):
        train_a = False

        def model(self):
            return Adapted(self.train_a)

        def party_data(self, party, n_parties):
            # Each party pulls another entry of the product.
            inputs = torch.eye(N_INPUTS)
            targets = torch.zeros(N_INPUTS, N_OUTPUTS)
            targets[party, party] = 4.0
            return inputs, targets

        def test_data(self):
            return self.party_data(0, 1)

    class BothTrained(FrozenA):
        train_a = True

    return FrozenA, BothTrained


@pytest.fixture
def gap(job_of):
    """Return how far the product after one real round is from the mean of the products."""

    def measure(task_class) -> float:
        job = job_of(
            task_class,
            "none",
            training={"rounds": 1, "local_steps": 100, "learning_rate": 0.5},
            aggregation={"modulus_bits": 48},
        )
        task = task_class()
        start = initial_model(task, job.training.seed)
        products = []
        for party in range(3):
            update = local_update(start, task.party_data(party, 3), task, job.training, 0)[0]
            model = initial_model(task, job.training.seed)
            load_flat_parameters(model, flat_parameters(start) + update)
            products.append(model.product())
        result = initial_model(task, job.training.seed)
        load_flat_parameters(result, run_round(job).parameters)
        mean = np.mean(products, axis=0)
        moved = np.linalg.norm(mean - start.product())
        return float(np.linalg.norm(result.product() - mean) / moved)

    return measure


def test_with_a_frozen_the_product_of_the_sum_is_the_sum_of_the_products(adapter_tasks, gap):
    # Float32 parameters; the grid is far finer.
    assert gap(adapter_tasks[0]) < 1e-5


def test_with_both_factors_trained_it_is_not(adapter_tasks, gap):
    # 0.58 with today's torch; its initial values decide.
    assert gap(adapter_tasks[1]) > 0.3


@pytest.mark.parametrize("unit", ["party", "record", "none"])
def test_what_is_frozen_is_neither_sent_nor_changed(unit, adapter_tasks, job_of):
    frozen_a, both = adapter_tasks
    start = initial_model(frozen_a(), seed=0)
    result = run_round(job_of(frozen_a, unit, training={"rounds": 1}))
    # Only B travels: its 6 values and not one of the 8 + 15 frozen ones.
    assert result.opened.shape == (N_OUTPUTS * RANK,)
    load_flat_parameters(start, result.parameters)
    again = initial_model(frozen_a(), seed=0)
    assert torch.equal(start.a, again.a)
    assert torch.equal(start.frozen.weight, again.frozen.weight)
    assert not torch.equal(start.b, again.b)
    # The check on the length sees a factor that is not frozen.
    sent = run_round(job_of(both, unit, training={"rounds": 1})).opened.size
    assert sent == N_OUTPUTS * RANK + RANK * N_INPUTS
