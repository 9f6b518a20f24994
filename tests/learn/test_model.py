from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mpcfl.config import Unit
from mpcfl.errors import ConfigError
from mpcfl.learn.model import (
    check_model,
    flat_change,
    flat_parameters,
    flat_rows,
    initial_model,
    load_flat_parameters,
    model_digest,
)
from mpcfl.learn.tasks.digits import DigitsTask


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.GroupNorm(1, 2), nn.Linear(2, 1))


def test_initial_model_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    initial_model(DigitsTask(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_flat_parameters_are_in_order_and_float64() -> None:
    model = two_layers()
    expected = [p.detach().numpy().ravel() for _, p in model.named_parameters()]
    flat = flat_parameters(model)
    assert flat.dtype == np.float64
    assert np.array_equal(flat, np.concatenate(expected))


def test_loading_flat_parameters_is_the_inverse() -> None:
    source, target = two_layers(), two_layers()
    load_flat_parameters(target, flat_parameters(source))
    assert model_digest(target) == model_digest(source)


def test_flat_parameters_are_a_copy() -> None:
    model = two_layers()
    before = model_digest(model)
    flat = flat_parameters(model)
    flat += 1.0
    assert model_digest(model) == before
    load_flat_parameters(model, flat)
    flat += 1.0
    assert np.array_equal(flat_parameters(model), (flat - 1.0).astype(np.float32))


def test_read_only_vector_can_be_loaded() -> None:
    model = two_layers()
    flat = flat_parameters(model)
    flat.flags.writeable = False
    load_flat_parameters(model, flat)


def test_frozen_parameters_are_not_in_the_vector() -> None:
    model = two_layers()
    model[0].requires_grad_(requires_grad=False)
    frozen = model[0].weight.clone()
    load_flat_parameters(model, np.zeros(flat_parameters(model).size))
    assert flat_parameters(model).size == 2 + 2 + 2 + 1
    assert torch.equal(model[0].weight, frozen)


def test_change_is_new_minus_old_of_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = two_layers(), two_layers()
    old = np.sin(np.arange(15.0))
    load_flat_parameters(before, old)
    load_flat_parameters(after, old * 1.0001 + 1e-9)
    expected = flat_parameters(after) - flat_parameters(before)
    monkeypatch.setattr("mpcfl.dp.pieces.PIECE_VALUES", 4)
    assert np.count_nonzero(expected) > 10
    np.testing.assert_array_equal(flat_change(after, before), expected)


def test_flat_rows_lie_in_order_and_let_go_of_what_they_were_made_of() -> None:
    tensors = [torch.arange(6.0).reshape(2, 3), torch.tensor([[[7.5]], [[8.5]]])]
    rows = flat_rows(tensors, 2)
    assert rows.dtype == np.float64
    assert rows.tolist() == [[0, 1, 2, 7.5], [3, 4, 5, 8.5]]
    assert tensors == []


def test_a_vector_that_is_read_only_can_be_loaded() -> None:
    model, vector = two_layers(), np.arange(15.0)
    vector.setflags(write=False)
    load_flat_parameters(model, vector)
    np.testing.assert_array_equal(flat_parameters(model), vector)


def test_vector_of_the_wrong_length_is_a_caller_bug() -> None:
    with pytest.raises(ValueError, match="15 trainable values"):
        load_flat_parameters(two_layers(), np.zeros(3))


def test_digest_changes_with_any_value() -> None:
    model = two_layers()
    flat = flat_parameters(model)
    digests = {model_digest(model)}
    for index in range(flat.size):
        changed = flat.copy()
        changed[index] = np.nextafter(np.float32(changed[index]), np.float32(9.0))
        load_flat_parameters(model, changed)
        digests.add(model_digest(model))
    assert len(digests) == flat.size + 1


def test_digest_covers_names_shapes_dtypes_and_buffers() -> None:
    def holding(name: str, tensor: torch.Tensor) -> nn.Module:
        model = nn.Module()
        model.register_buffer(name, tensor)
        return model

    models = [
        holding("a", torch.zeros(4)),
        holding("b", torch.zeros(4)),
        holding("a", torch.zeros(2, 2)),
        holding("a", torch.zeros(4, dtype=torch.int32)),
        holding("a", torch.zeros(4, dtype=torch.bfloat16)),
        holding("a", torch.tensor(0.0)),
        holding("a", torch.tensor([0.0, 0.0, 0.0, 1.0])),
    ]
    assert len({model_digest(model) for model in models}) == len(models)


@pytest.mark.parametrize("unit", list(Unit))
def test_batch_normalization_is_refused_with_its_place_and_the_remedy(unit: Unit) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ConfigError, match=r'BatchNorm2d at "1".*GroupNorm'):
        check_model(model, unit)


def test_model_without_trainable_parameters_is_refused() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    for model in (nn.ReLU(), frozen):
        with pytest.raises(ConfigError, match="no trainable parameter"):
            check_model(model, Unit.NONE)
