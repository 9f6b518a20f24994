"""Low-rank adapters: why A is frozen, that only the chosen parameters are trained and sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_texts import N_REVIEWS, TEST_RECORDS, tiny_options
from torch import nn

from mpcfl.config import Job, parse_job
from mpcfl.errors import ConfigError
from mpcfl.learn.model import flat_parameters, initial_model, load_flat_parameters
from mpcfl.learn.text.models import adapted, adapter_products
from mpcfl.learn.text.options import TextOptions
from mpcfl.learn.train import local_update
from mpcfl.round import run_round

N_PARTIES = 3
LORA = {"train": "lora", "lora_rank": 2}
Vector = Any


@pytest.fixture
def make_job(texts: Path) -> Callable[..., Job]:
    """Return a function that makes a job of three parties that train adapters."""

    def make(form: str = "ffa", unit: str = "none", **training: Any) -> Job:
        privacy: dict[str, Any] = {"unit": unit}
        if unit != "none":
            privacy |= {"epsilon": 8.0, "clip_norm": 100.0}
        document = {
            "task": "imdb",
            "task_options": {
                **tiny_options(texts),
                "train": "lora",
                "lora_rank": 2,
                "lora_form": form,
            },
            "parties": {"count": N_PARTIES},
            "privacy": privacy,
            "training": {"rounds": 1, "local_steps": 4, "learning_rate": 2.0, **training},
            "aggregation": {"backend": "ring", "modulus_bits": 48},
        }
        return parse_job(document, "inline")

    return make


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def others(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all that is not trained, buffers too."""
    return {name: value for name, value in model.state_dict().items() if name not in trained(model)}


def products(model: Any) -> Vector:
    """Return B A of all adapters as one vector, float64."""
    parts = adapter_products(model.network).values()
    return torch.cat([part.flatten() for part in parts]).double().numpy()


def after(task: Any, job: Job, parameters: Vector) -> nn.Module:
    """Return the model of a job with these trained values."""
    model = initial_model(task, job.training.seed)
    load_flat_parameters(model, parameters)
    return model


def party_parameters(task: Any, job: Job) -> list[Vector]:
    """Return what each party's own training makes of the trained values."""
    start = initial_model(task, job.training.seed)
    return [
        flat_parameters(start)
        + local_update(start, task.party_data(party, N_PARTIES), task, job.training, 0)[0]
        for party in range(N_PARTIES)
    ]


def gap(found: Vector, expected: Vector) -> float:
    """Return how far it is off, as a share of what was expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_only_b_and_the_head_are_trained_unless_both_are_asked_for(
    make_task: Callable[..., Any],
) -> None:
    names = set(trained(make_task(train="lora").model()))
    kinds = {"lora_B" if ".lora_B." in name else "head" for name in names if ".lora_A." not in name}
    assert kinds == {"lora_B", "head"}
    assert not [name for name in names if ".lora_A." in name]
    # What is no B belongs to the classifier.
    assert all("classifier" in name for name in names if ".lora_B." not in name)
    both = set(trained(make_task(train="lora", lora_form="both").model()))
    assert {name.replace("lora_A", "lora_B") for name in both - names} == {
        name for name in names if ".lora_B." in name
    }


def test_a_is_alike_at_all_parties_and_another_with_another_seed(
    make_task: Callable[..., Any],
) -> None:
    models = [initial_model(make_task(train="lora"), seed) for seed in (0, 0, 1)]
    factors = [
        torch.cat([p.flatten() for name, p in model.named_parameters() if ".lora_A." in name])
        for model in models
    ]
    assert factors[0].any()
    assert torch.equal(factors[0], factors[1])
    assert not torch.equal(factors[0], factors[2])


def test_with_a_frozen_the_product_of_the_means_is_the_mean_of_the_products(
    make_task: Callable[..., Any], make_job: Callable[..., Job]
) -> None:
    job, task = make_job(), make_task(**LORA)
    by_party = party_parameters(task, job)
    mean = after(task, job, np.mean(by_party, axis=0))
    expected = np.mean([products(after(task, job, own)) for own in by_party], axis=0)
    assert np.linalg.norm(expected) > 0.01
    assert np.allclose(products(mean), expected, rtol=0, atol=1e-6)


def test_with_both_factors_trained_it_is_not(
    make_task: Callable[..., Any], make_job: Callable[..., Job]
) -> None:
    job, task = make_job("both"), make_task(**LORA, lora_form="both")
    by_party = party_parameters(task, job)
    mean = after(task, job, np.mean(by_party, axis=0))
    expected = np.mean([products(after(task, job, own)) for own in by_party], axis=0)
    found = products(mean)
    assert not np.allclose(found, expected, rtol=0, atol=1e-6)
    # In the first steps B is small and so is the gap; it is no matter of rounding.
    assert gap(found, expected) > 1e-3


def test_through_a_secure_sum_the_product_is_the_mean_of_the_products(
    make_task: Callable[..., Any], make_job: Callable[..., Job]
) -> None:
    job, task = make_job(), make_task(**LORA)
    result = run_round(job)
    opened = after(task, job, result.parameters)
    expected = np.mean(
        [products(after(task, job, own)) for own in party_parameters(task, job)], axis=0
    )
    assert np.allclose(products(opened), expected, rtol=0, atol=1e-6)
    start = initial_model(task, job.training.seed)
    assert result.opened.shape == (sum(p.numel() for p in trained(start).values()),)


@pytest.mark.parametrize("form", ["ffa", "both"])
def test_what_is_frozen_stays_bit_for_bit_and_does_not_travel(
    make_task: Callable[..., Any], make_job: Callable[..., Job], form: str
) -> None:
    job, task = make_job(form, unit="party"), make_task(**LORA, lora_form=form)
    start = initial_model(task, job.training.seed)
    before = {name: value.clone() for name, value in others(start).items()}
    result = run_round(job)
    model = after(task, job, result.parameters)
    assert result.opened.shape == (sum(p.numel() for p in trained(start).values()),)
    assert before.keys() == others(model).keys()
    assert all(torch.equal(value, before[name]) for name, value in others(model).items())
    assert not any(
        torch.equal(value, start.get_parameter(name)) for name, value in trained(model).items()
    )
    # Of the base itself, too: nothing of it was changed on the way into the adapters.
    base = task.pretrained.encoder().state_dict()
    kept = {name: v for name, v in before.items() if "lora_" not in name}
    for name, value in base.items():
        twins = [v for n, v in kept.items() if n.replace(".base_layer", "").endswith(f".{name}")]
        assert name.startswith("pooler.") or [torch.equal(v, value) for v in twins] == [True], name


def test_a_model_for_which_peft_knows_no_place_is_refused() -> None:
    class Unknown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config: Any = SimpleNamespace(to_dict=lambda: {"model_type": "unknown"})
            self.linear = nn.Linear(2, 2)

    with pytest.raises(ConfigError, match=r'task_options\.train = "lora": peft does not know'):
        adapted(Unknown(), TextOptions(), "unknown")


def test_everything_is_trained_in_full(make_task: Callable[..., Any]) -> None:
    model = make_task(train="full").model()
    assert not [name for name, p in model.named_parameters() if not p.requires_grad]
    n_records = N_REVIEWS - TEST_RECORDS
    assert make_task(train="full").party_data(0, 1)[0].shape[0] == n_records
