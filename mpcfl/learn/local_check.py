"""Refuse what local DP-SGD can't train soundly, before any private record is read."""

from __future__ import annotations

import torch
from torch import nn

from mpcfl.config import Placement, TrainingTable, Unit
from mpcfl.dp.plan import NoisePlan
from mpcfl.learn.blocks import rows_at_once
from mpcfl.learn.device import check_device
from mpcfl.learn.local_dp import CHOSEN, load_exact_optimizer
from mpcfl.learn.model import check_model, trainable_size
from mpcfl.learn.opacus_check import OpacusUse, check_layers, check_rows
from mpcfl.learn.task import Task


def check_local_training(
    model: nn.Module, task: Task, training: TrainingTable, plan: NoisePlan
) -> None:
    """Refuse a model or a loss that Opacus can't differentiate record by record.

    Args:
        model: the global model; left unchanged. Torch's generator is left as it was, too.
        task: gives the loss and the test records.
        training: says where, and how many records at once.
        plan: of the local placement.

    Raises:
        BackendUnavailable: Opacus is not installed.
        ConfigError: the model has batch normalization or another layer that Opacus does not
            support, fails, or does not give every record a gradient of its own.
    """
    if plan.placement is not Placement.LOCAL:
        raise ValueError("the plan is not one of local training")
    check_device(training.device)
    check_local_layers(model)
    check_model(model, Unit.RECORD)
    use = OpacusUse(
        instead='set privacy.placement = "distributed"',
        device=torch.device(training.device),
        at_once=rows_at_once(training.microbatch, trainable_size(model)),
    )
    check_rows(model, task, use)


def check_local_layers(model: nn.Module) -> None:
    """Refuse a layer that Opacus refuses, with its words and what it would do about it.

    Raises:
        BackendUnavailable: Opacus is not installed.
        ConfigError: there is such a layer.
    """
    load_exact_optimizer()
    check_layers(model, CHOSEN)
