"""How the constants of the accuracy table were chosen; writes benchmarks/cases/utility.toml.

    python benchmarks/cases/tune_utility.py             # about a quarter of an hour on one core
    python benchmarks/cases/tune_utility.py --test 20   # expected test accuracy of what was chosen

Each seed of the table has a split of its own, and its constants are chosen from the training
records of that split alone: a candidate is trained on a part of them and judged on the rest, by
stratified cross-validation. Every run is simulated in one process.
The simulation is that of the stages without their integers (rounding adds less than a thousandth
at 32 bits): clipped per-record gradients of Poisson samples, Gaussian noise of the planned standard
deviation, the server's step. Its noise comes from a seeded generator, so it protects nothing.

The grid is small on purpose and the same for all private cells of a task: one server (momentum
0.9, or none where a party takes several local steps), rounds, clip norms and learning rates.
MNIST-5k is kept to half the records and 50 rounds so that the table through the real protocol
takes minutes, not hours. No epsilon covers the choice itself: whoever tunes on private records
has to pay for that.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev

import torch
from sklearn.model_selection import StratifiedKFold
from split_tasks import task_path
from torch import Tensor
from torch.nn.functional import one_hot, softmax
from utility import load_settings

from mpcfl.dp.plan import make_plan
from mpcfl.learn.model import initial_model
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Records

PARTIES, CLASSES, DELTA = 10, 10, 1e-5
CELLS = (("none", 0.0), *itertools.product(("distributed", "local"), (1.0, 2.0, 4.0, 8.0)))
# With 360 test records and their noise, five runs of digits are too few to tell.
SEEDS = {"digits": range(10), "mnist5k": range(5)}
# Folds that are judged, of five, and noise seeds for each.
FOLDS = {"digits": 5, "mnist5k": 2}
NOISE_SEEDS = {"digits": 2, "mnist5k": 1}
SAMPLE_RATE = {"digits": 1.0, "mnist5k": 0.5}
STEPS = {"digits": (40, 80), "mnist5k": (50,)}
CLIP_NORMS = (0.5, 1.0)
# Of the server with one local step, of the party with five.
LEARNING_RATES = {1: (0.125, 0.25, 0.5, 1.0, 2.0), 5: (0.5, 1.0, 2.0, 4.0)}
CHOSEN = Path(__file__).with_name("utility.toml")
HEAD = """\
# Written by: python benchmarks/cases/tune_utility.py
# A list has one value for each seed, chosen from the training records of that seed's split.
"""


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the table at one seed, and one choice of its constants.

    Attributes:
        placement: "distributed", "local", or "none" for no privacy.
        epsilon: of the whole run; 0 without privacy.
        seed: of the split.
        learning_rate: of the server if there is one local step, else of the party.
    """

    task: str
    placement: str
    epsilon: float
    seed: int
    sample_rate: float
    rounds: int
    local_steps: int
    clip_norm: float
    learning_rate: float
    momentum: float


def candidates(task: str, placement: str, epsilon: float, seed: int) -> Iterator[Setting]:
    """Yield the grid of one cell."""
    cell = (task, placement, epsilon, seed)
    if placement == "none":
        for rate in LEARNING_RATES[1]:
            yield Setting(*cell, 1.0, STEPS[task][-1], 1, 1e9, rate / 5, 0.9)
        return
    for steps, clip_norm, rate in itertools.product(STEPS[task], CLIP_NORMS, LEARNING_RATES[1]):
        yield Setting(*cell, SAMPLE_RATE[task], steps, 1, clip_norm, rate, 0.9)
    if placement == "local":
        for rate in LEARNING_RATES[5]:
            yield Setting(*cell, SAMPLE_RATE[task], STEPS[task][-1] // 5, 5, 1.0, rate, 0.0)


@lru_cache(maxsize=256)
def noise_multiplier(epsilon: float, sample_rate: float, steps: int) -> float:
    """Return the z of the plan: it depends on neither the placement nor the task."""
    plan = make_plan(
        epsilon=epsilon, delta=DELTA, rounds=steps, parties=2, dim=650, clip_norm=1.0,
        modulus_bits=40, unit="record", sample_rate=sample_rate, records=1000,
    )  # fmt: skip
    multiplier: float = plan.noise_multiplier
    return multiplier


def noise_std(setting: Setting) -> float:
    """Return the standard deviation of the noise that one party adds in one step."""
    if setting.placement == "none":
        return 0.0
    steps = setting.rounds * setting.local_steps
    z = noise_multiplier(setting.epsilon, setting.sample_rate, steps)
    # Shares are sized for one colluding party; a local party's noise is all that it needs.
    honest = PARTIES - 1 if setting.placement == "distributed" else 1
    return z * setting.clip_norm / math.sqrt(honest)


def simulate(setting: Setting, train: Records, test: Records, seed: int) -> float:
    """Return the accuracy on ``test`` after a simulated run with the noise of ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    # With a single local step only the sum over parties matters: one group stands for all.
    groups = PARTIES if setting.local_steps > 1 else 1
    size = len(train[0]) // groups
    inputs = _dealt(with_bias(train[0]), groups)
    labels, norms = _dealt(_one_hot(train[1]), groups), inputs.norm(dim=2, keepdim=True)
    parameters = _initial_parameters(setting, seed)
    velocity, std = torch.zeros_like(parameters), noise_std(setting) * math.sqrt(PARTIES / groups)
    for _ in range(setting.rounds):
        local = parameters.expand(groups, *parameters.shape)
        for _ in range(setting.local_steps):
            drawn = torch.rand(groups, size, 1, generator=generator) < setting.sample_rate
            residual = labels - softmax(inputs @ local.transpose(1, 2), dim=2)
            total = _clipped(residual, norms, setting.clip_norm, drawn).transpose(1, 2) @ inputs
            total += std * torch.randn(total.shape, generator=generator)
            local = local + setting.learning_rate * total / (setting.sample_rate * size)
        velocity = setting.momentum * velocity + local.mean(dim=0) - parameters
        parameters = parameters + velocity
    predicted = (with_bias(test[0]) @ parameters.T).argmax(dim=1)
    return float((predicted == test[1]).double().mean())


def _initial_parameters(setting: Setting, seed: int) -> Tensor:
    task = load_task(task_path(setting.task, setting.seed))
    weight, bias = initial_model(task, seed).parameters()
    return torch.cat([weight, bias[:, None]], dim=1).detach()


def _dealt(values: Tensor, groups: int) -> Tensor:
    """Deal rows out to the groups, shape (groups, size, ...); a remainder is left out."""
    size = len(values) // groups
    return values[: size * groups].view(size, groups, -1).transpose(0, 1).contiguous()


def _clipped(residual: Tensor, norms: Tensor, clip_norm: float, drawn: Tensor) -> Tensor:
    """Return the residuals of the drawn records, scaled so that their gradients are clipped."""
    # The gradient of one record is an outer product: its norm is the product of norms.
    norm = residual.norm(dim=2, keepdim=True) * norms
    scaled: Tensor = residual * (clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0) * drawn
    return scaled


def with_bias(inputs: Tensor) -> Tensor:
    """Return the inputs with a column of ones: the bias becomes a weight."""
    return torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)


def _one_hot(labels: Tensor) -> Tensor:
    return one_hot(labels, CLASSES).float()


def validate(setting: Setting) -> float:
    """Return the mean accuracy on held-out training records of the setting's split."""
    inputs, labels = load_task(task_path(setting.task, setting.seed)).party_data(0, 1)
    folds = StratifiedKFold(5, shuffle=True, random_state=setting.seed).split(inputs, labels)
    accuracies = [
        simulate(setting, (inputs[a], labels[a]), (inputs[b], labels[b]), 100 * fold + seed)
        for fold, (a, b) in enumerate(itertools.islice(folds, FOLDS[setting.task]))
        for seed in range(NOISE_SEEDS[setting.task])
    ]
    return sum(accuracies) / len(accuracies)


def choose(task: str, placement: str, epsilon: float, seed: int) -> tuple[Setting, float]:
    """Return the best candidate of a cell at one seed, and its validation accuracy."""
    tried = [(s, validate(s)) for s in candidates(task, placement, epsilon, seed)]
    return max(tried, key=lambda result: result[1])


def as_toml(chosen: Iterable[tuple[Setting, float]]) -> str:
    """Return one [[cell]] of the file of choices: the choices of all its seeds."""
    settings, accuracies = zip(*chosen, strict=True)
    rows = [asdict(setting) for setting in settings]
    lines = [f"{name} = {[row[name] for row in rows]}" for name in rows[0]]
    for index, name in enumerate(("task", "placement", "epsilon")):
        value = rows[0][name]
        lines[index] = f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
    lines.append(f"validation_accuracy = {[round(accuracy, 4) for accuracy in accuracies]}")
    return "\n".join(["", "[[cell]]", *lines, ""])


def choose_all(out: Path, processes: int) -> None:
    """Write the choices, cell by cell."""
    text = HEAD
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        pending = {
            cell: [pool.submit(choose, *cell, seed) for seed in SEEDS[cell[0]]]
            for cell in ((task, *rest) for task in FOLDS for rest in CELLS)
        }
        for cell, futures in pending.items():
            chosen = [future.result() for future in futures]
            print(*cell, f"{fmean(accuracy for _, accuracy in chosen):.4f}", flush=True)
            text += as_toml(chosen)
            out.write_text(text, encoding="utf-8")


def print_expected(n_runs: int) -> None:
    """Print what simulated runs of the chosen constants reach on the test records."""
    print("| task | noise | epsilon | expected mean of all seeds | its std over reruns |")
    print("|---" * 5 + "|")
    cells: dict[tuple[str, str, float], list[list[float]]] = {}
    for chosen in load_settings():
        setting = Setting(**{name: chosen[name] for name in Setting.__slots__})
        task = load_task(task_path(setting.task, setting.seed))
        train, test = task.party_data(0, 1), task.test_data()
        # No noise twice: equal noise would tie the seeds together.
        noise_seeds = range(1000 + setting.seed * n_runs, 1000 + (setting.seed + 1) * n_runs)
        runs = [simulate(setting, train, test, noise_seed) for noise_seed in noise_seeds]
        cells.setdefault((setting.task, setting.placement, setting.epsilon), []).append(runs)
    for (name, placement, epsilon), runs_by_seed in cells.items():
        # A rerun of the table takes one run of every seed.
        means = [fmean(one_of_each) for one_of_each in zip(*runs_by_seed, strict=True)]
        print(f"| {name} | {placement} | {epsilon:g} | {fmean(means):.4f} | {stdev(means):.4f} |")


def main() -> None:
    """Write the choices, or print what they are expected to reach."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=CHOSEN, help="file to write")
    parser.add_argument("--processes", type=int, default=1, help="cores to use")
    parser.add_argument("--test", type=int, metavar="RUNS", help="simulate the chosen constants")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.test is not None:
        print_expected(options.test)
        return
    choose_all(options.out, options.processes)


if __name__ == "__main__":
    main()
