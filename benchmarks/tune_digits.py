"""How the constants of launch/jobs/digits.toml were chosen; prints the table of docs/tasks.md.

    python benchmarks/tune_digits.py            # every candidate, on validation folds
    python benchmarks/tune_digits.py --test     # the chosen job, on the test set

A run is simulated in one process: sum of clipped per-record gradients of a Poisson sample,
plus Gaussian noise of the standard deviation that the honest parties' shares leave when
one of `PARTIES` colludes, z C sqrt(n / (n - 1)). Rounding to integers is left out: at 32
bits it adds less than a thousandth. Candidates are compared by 5-fold cross-validation on
the training records alone. The simulation's noise comes from a seeded generator, so it
protects nothing.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

import dp_accounting
import numpy as np
import torch
from dp_accounting import pld
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch.nn.functional import one_hot, softmax

from mpcfl.config import Optimizer, ServerTable
from mpcfl.learn.apply import apply_mean, initial_state
from mpcfl.learn.model import initial_model
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.digits import DigitsTask

Accuracies = NDArray[np.float64]
PARTIES = 4
EPSILON, DELTA = 4.0, 1e-5
NOISE_SEEDS = 5
CLASSES = 10
COLUMNS = (
    "sample_rate", "rounds", "clip_norm", "optimizer", "learning_rate", "momentum", "z",
    "accuracy", "std",
)  # fmt: skip
SERVERS = (
    ServerTable(optimizer=Optimizer.FEDADAM, learning_rate=0.05),
    ServerTable(optimizer=Optimizer.FEDADAM, learning_rate=0.1),
    ServerTable(optimizer=Optimizer.FEDAVG, learning_rate=2.0),
    ServerTable(optimizer=Optimizer.FEDAVG, learning_rate=4.0),
    ServerTable(optimizer=Optimizer.FEDAVG, learning_rate=0.5, momentum=0.9),
    ServerTable(optimizer=Optimizer.FEDAVG, learning_rate=1.0, momentum=0.9),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One choice of the constants in the job file."""

    sample_rate: float
    rounds: int
    clip_norm: float
    server: ServerTable


CHOSEN = Candidate(0.5, 60, 1.0, SERVERS[4])


def noise_multiplier(sample_rate: float, rounds: int) -> float:
    """Return the least z that meets the budget, by PLD accounting."""

    def event(z: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(sample_rate, dp_accounting.GaussianDpEvent(z))
        return dp_accounting.SelfComposedDpEvent(step, rounds)

    bracket = dp_accounting.ExplicitBracketInterval(0.3, 100.0)
    z: float = dp_accounting.calibrate_dp_mechanism(
        lambda: pld.PLDAccountant(value_discretization_interval=1e-3),
        event, EPSILON, DELTA, bracket, tol=1e-3,
    )  # fmt: skip
    return z


def simulate(candidate: Candidate, z: float, train: Records, test: Records, seed: int) -> float:
    """Return the test accuracy of one simulated run."""
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = with_bias(train[0]), one_hot(train[1], CLASSES).double()
    weight, bias = initial_model(DigitsTask(), seed=0).parameters()
    shape = (CLASSES, inputs.shape[1])
    parameters = torch.cat([weight, bias[:, None]], dim=1).detach().double().reshape(-1).numpy()
    state = initial_state(parameters.size, candidate.server)
    std = z * candidate.clip_norm * (PARTIES / (PARTIES - 1)) ** 0.5
    for _ in range(candidate.rounds):
        drawn = torch.rand(len(inputs), generator=generator) < candidate.sample_rate
        x = inputs[drawn]
        model = torch.from_numpy(parameters).view(shape)
        residual = labels[drawn] - softmax(x @ model.T, dim=1)
        # The gradient of one record is an outer product: its norm is the product of norms.
        norm = residual.norm(dim=1) * x.norm(dim=1)
        residual *= (candidate.clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0)[:, None]
        noise = std * torch.randn(shape, generator=generator, dtype=torch.float64)
        total = (residual.T @ x + noise).reshape(-1).numpy()
        mean = total / (candidate.sample_rate * len(inputs))
        parameters, state = apply_mean(parameters, mean, state, candidate.server)
    predicted = (with_bias(test[0]) @ torch.from_numpy(parameters).view(shape).T).argmax(dim=1)
    return float((predicted == test[1]).double().mean())


def with_bias(inputs: torch.Tensor) -> torch.Tensor:
    """Return the inputs in float64 with a column of ones: the bias becomes a weight."""
    return torch.cat([inputs.double(), torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)


def cross_validate(candidate: Candidate, z: float) -> Accuracies:
    """Return the validation accuracy, shape (folds, NOISE_SEEDS)."""
    inputs, labels = DigitsTask().party_data(0, 1)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=1).split(inputs, labels))
    accuracies = [
        [
            simulate(candidate, z, (inputs[a], labels[a]), (inputs[b], labels[b]), 100 * f + seed)
            for seed in range(NOISE_SEEDS)
        ]
        for f, (a, b) in enumerate(folds)
    ]
    return np.array(accuracies)


def noise_std(accuracy: Accuracies) -> float:
    """Return the standard deviation over noise seeds, pooled over the folds."""
    return float(np.sqrt(accuracy.var(axis=1, ddof=1).mean()))


def score(accuracy: Accuracies) -> float:
    """Return what a run reaches almost surely: candidates are ranked by it."""
    return float(accuracy.mean() - 3.0 * noise_std(accuracy))


def row(candidate: Candidate, z: float, accuracy: Accuracies) -> str:
    """Return one line of the table."""
    server = candidate.server
    return (
        f"| {candidate.sample_rate} | {candidate.rounds} | {candidate.clip_norm} "
        f"| {server.optimizer} | {server.learning_rate} | {server.momentum} | {z:.3f} "
        f"| {accuracy.mean():.4f} | {noise_std(accuracy):.4f} |"
    )


def main() -> None:
    """Print the table, best candidates first, or the chosen candidate on the test set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--test", action="store_true", help="the chosen job on the test set")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    if parser.parse_args().test:
        z = noise_multiplier(CHOSEN.sample_rate, CHOSEN.rounds)
        train, test = DigitsTask().party_data(0, 1), DigitsTask().test_data()
        accuracy = np.array([[simulate(CHOSEN, z, train, test, s) for s in range(20)]])
        print(row(CHOSEN, z, accuracy))
        return
    results = []
    for sample_rate, rounds in itertools.product((0.3, 0.5), (40, 60)):
        z = noise_multiplier(sample_rate, rounds)
        for clip_norm, server in itertools.product((0.5, 1.0), SERVERS):
            candidate = Candidate(sample_rate, rounds, clip_norm, server)
            results.append((candidate, z, cross_validate(candidate, z)))
    for result in sorted(results, key=lambda result: -score(result[2])):
        print(row(*result))


if __name__ == "__main__":
    main()
