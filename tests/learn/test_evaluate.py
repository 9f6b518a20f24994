from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpcfl.errors import ConfigError
from mpcfl.learn.evaluate import evaluate
from mpcfl.learn.model import initial_model
from mpcfl.learn.task import Records
from mpcfl.learn.tasks.digits import DigitsTask


class FixedTask:
    """The model is the identity, so the inputs are the outputs."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        self.records = outputs, targets

    def model(self) -> nn.Module:
        return nn.Identity()

    def party_data(self, party: int, n_parties: int) -> Records:
        return self.records

    def test_data(self) -> Records:
        return self.records

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.sum() - targets.sum()) ** 2


class WithMetrics(FixedTask):
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return {"largest": float(outputs.max())}


class VectorLoss(FixedTask):
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs


def test_several_columns_predict_by_the_largest() -> None:
    outputs = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    task = FixedTask(outputs, torch.tensor([1, 0, 2, 2]))
    assert evaluate(task.model(), task)["accuracy"] == 0.75


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_one_column_predicts_class_1_above_zero(dtype: torch.dtype) -> None:
    task = FixedTask(torch.tensor([[0.5], [-0.5], [0.0], [2.0]]), torch.tensor([1, 0, 0, 0]))
    task.records = task.records[0], task.records[1].to(dtype)
    assert evaluate(task.model(), task)["accuracy"] == 0.75


def test_targets_that_are_no_classes_give_the_loss_only() -> None:
    task = FixedTask(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    assert evaluate(task.model(), task) == {"loss": 4.0}


def test_own_metrics_replace_the_accuracy() -> None:
    task = WithMetrics(torch.tensor([[1.0, 5.0]]), torch.tensor([1]))
    assert evaluate(task.model(), task) == {"loss": 25.0, "largest": 5.0}


def test_evaluation_switches_dropout_off_and_restores_every_mode() -> None:
    task = FixedTask(torch.ones(8, 2), torch.tensor([0.0]))
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    model.get_submodule("1").eval()
    assert evaluate(model, task) == {"loss": 256.0}
    assert [module.training for module in model.modules()] == [True, True, False]


def test_loss_that_is_no_scalar_is_refused() -> None:
    task = VectorLoss(torch.ones(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(ConfigError, match=r"shape \(3, 2\); return one number"):
        evaluate(task.model(), task)


def test_empty_test_data_are_refused() -> None:
    task = FixedTask(torch.ones(0, 2), torch.ones(0))
    with pytest.raises(ConfigError, match="no records"):
        evaluate(task.model(), task)


def test_labels_that_do_not_fit_the_outputs_are_refused() -> None:
    task = FixedTask(torch.ones(3, 2, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(ConfigError, match="one class label per record"):
        evaluate(task.model(), task)


class OwnMetrics(DigitsTask):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return self.answer  # type: ignore[return-value]  # the point of the test


def test_own_metrics_become_plain_numbers() -> None:
    task = OwnMetrics({"recall": torch.tensor(0.5)})
    found = evaluate(initial_model(task, seed=0), task)
    assert found["recall"] == 0.5
    assert type(found["recall"]) is float


@pytest.mark.parametrize("answer", [None, {"recall": "much"}, {"recall": torch.ones(2)}])
def test_own_metrics_that_are_no_numbers_are_refused(answer: object) -> None:
    task = OwnMetrics(answer)
    with pytest.raises(ConfigError, match=r"metrics\(\) must return a dict"):
        evaluate(initial_model(task, seed=0), task)
