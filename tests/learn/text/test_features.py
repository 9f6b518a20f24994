"""Features of a frozen encoder, and the head on them: the classifier of tokens it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_texts import HIDDEN_SIZE, N_REVIEWS
from torch import nn

from mpcfl.learn.text import features
from mpcfl.learn.text.features import FeatureScale, mean_of_tokens, token_mean
from mpcfl.learn.text.models import FeatureHead, MeanLogits
from mpcfl.learn.text.pretrained import Pretrained
from mpcfl.learn.text.saved import with_head

# Float32 sums of 24 tokens and of 32 features, each of order 1.
TOLERANCE = 24 * 32 * float(np.finfo(np.float32).eps)


def trained_head() -> FeatureHead:
    """Return a head with other weights than those that it starts with."""
    head = FeatureHead(HIDDEN_SIZE, 2)
    with torch.no_grad():
        head.classifier.weight.copy_(torch.arange(2 * HIDDEN_SIZE).reshape(2, -1).sin())
        head.classifier.bias.copy_(torch.tensor([0.25, -0.5]))
    return head


def test_a_head_on_features_is_the_saved_classifier_on_tokens(
    make_task: Callable[..., Any],
) -> None:
    task, head = make_task(), trained_head()
    on_tokens = MeanLogits(with_head(task.pretrained, head, task._scaled[1]), 0)
    with torch.no_grad():
        expected = head(task.test_data()[0])
        found = on_tokens(make_task(train="full").test_data()[0])
    assert expected.std() > 0.1
    assert torch.allclose(found, expected, rtol=0, atol=TOLERANCE * float(expected.abs().max()))


def test_padding_changes_nothing(make_task: Callable[..., Any]) -> None:
    """A text alone, beside a longer one, or among those it is computed with gives one vector."""
    task = make_task()
    encoder, ids = task.pretrained.encoder(), task._table.ids
    row = int((ids != 0).sum(dim=1).argmin())
    length = int((ids[row] != 0).sum())
    assert length < ids.shape[1] / 2
    alone = mean_of_tokens(encoder, ids[row : row + 1, :length], 0)
    longest = int((ids != 0).sum(dim=1).argmax())
    beside = mean_of_tokens(encoder, ids[[longest, row]], 0)[1:]
    kept = torch.from_numpy(features.text_features(task._table, task.pretrained, lambda *_: None))
    for found in (beside, kept[row : row + 1]):
        assert torch.allclose(found, alone, rtol=0, atol=TOLERANCE)


def test_the_mean_is_over_tokens_that_are_there() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, float("1e30")]]])
    mask = torch.tensor([[True, True, False]])
    assert torch.equal(token_mean(values, mask), torch.tensor([[2.0, 4.0]]))


def test_features_are_computed_once_and_then_read(
    make_task: Callable[..., Any], fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    first = make_task()
    first.prepare(lambda *words: told.append(words))
    assert told[-1] == ("features of the texts", 1, 1)
    monkeypatch.setattr(Pretrained, "encoder", lambda *_: pytest.fail("computed again"))
    second = make_task()
    for pair in zip(second.test_data(), first.test_data(), strict=True):
        assert torch.equal(*pair)


def test_without_a_head_no_features_are_computed(
    make_task: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretrained, "encoder", lambda *_: pytest.fail("computed for nothing"))
    for train in ("lora", "full"):
        task = make_task(train=train)
        task.prepare(lambda *_: None)
        assert task.party_data(0, 2)[0].dtype == torch.int64


def test_the_scale_is_made_of_public_records_only(
    make_task: Callable[..., Any],
) -> None:
    task = make_task()
    raw = torch.from_numpy(features.text_features(task._table, task.pretrained, lambda *_: None))
    public = raw[torch.from_numpy(task._table.test_rows)]
    scale = task._scaled[1]
    assert torch.equal(scale.centre, public.mean(dim=0))
    assert torch.equal(scale.spread, FeatureScale.of(public).spread)
    scaled = task.test_data()[0]
    assert torch.allclose(scaled, (public - scale.centre) / scale.spread)
    # A usual vector has the norm 1, so that its gradient is below the usual clip norm.
    assert float(scaled.square().sum(dim=1).mean()) == pytest.approx(1.0, rel=0.05)
    assert task.party_data(0, 1)[0].shape == (N_REVIEWS - len(public), HIDDEN_SIZE)


def test_a_feature_that_never_differs_does_not_divide_by_zero() -> None:
    values = torch.arange(15.0).reshape(5, 3).sin()
    values[:, 1] = 7.0
    scaled = FeatureScale.of(values).apply(values)
    assert torch.isfinite(scaled).all()
    assert not scaled[:, 1].any()
    assert scaled[:, [0, 2]].any()


def test_a_head_alone_is_trained(make_task: Callable[..., Any]) -> None:
    model = make_task().model()
    assert isinstance(model, FeatureHead)
    assert {name: p.numel() for name, p in model.named_parameters() if p.requires_grad} == {
        "classifier.weight": 2 * HIDDEN_SIZE,
        "classifier.bias": 2,
    }
    assert sum(p.numel() for p in model.parameters()) == 2 * HIDDEN_SIZE + 2


def test_dropout_stays_off_while_a_model_is_trained(make_task: Callable[..., Any]) -> None:
    for train in ("lora", "full"):
        task = make_task(train=train)
        model = task.model().train()
        inputs = task.test_data()[0][:2]
        with torch.no_grad():
            assert torch.equal(model(inputs), model(inputs))
        assert not any(module.training for module in model.modules())
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0}
