"""Measure a model on the task's public test data; never on a party's own.

What is measured here may be published: it depends on the public model and on public data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mpcfl.errors import ConfigError
from mpcfl.learn.task import MeasuresItself, MeasuresOwnMetrics, Records, Task

# Test records per forward pass: bounds the memory of a deep model's activations.
_BLOCK = 64


def evaluate(
    model: nn.Module,
    task: Task,
    device: str = "cpu",
    records: Records | None = None,
    rounds_done: int = 0,
) -> dict[str, float]:
    """Return the metrics of a model on the public test data.

    A task that measures its models by itself (`MeasuresItself`) says all there is to say.
    Otherwise:

    ``loss`` is the task's own loss of the whole test data as one batch, so it is a mean or a
    sum as the task defines it. The other metrics are those of the task's
    ``metrics(outputs, targets)``, if it has that method. Otherwise integer or boolean
    targets are taken as class labels and give ``accuracy``: with several columns the
    predicted class is the largest output, with one column it is class 1 where the output (a
    logit) is above 0. Targets of a floating type give the loss only.

    Args:
        model: left unchanged, its training mode included.
        task: gives the test data and the loss.
        device: where the model computes its outputs, ``training.device``; a model on another
            device than the CPU is copied there. Loss and metrics are computed on the CPU.
        records: public ones to measure on in place of all test data, to try a model out.
        rounds_done: how many rounds made the model.

    Raises:
        ConfigError: the test data are empty, or the loss is not a scalar.
    """
    if isinstance(task, MeasuresItself):
        return _numbers(task.measure(model, rounds_done), "measure()")
    inputs, targets = task.test_data() if records is None else records
    if len(inputs) == 0:
        raise ConfigError("the task's test_data() returns no records; return at least one")
    outputs = _outputs(model, inputs, torch.device(device))
    loss = task.loss(outputs, targets)
    if loss.ndim != 0:
        raise ConfigError(
            f"the task's loss() returns shape {tuple(loss.shape)}; return one number, for "
            "example the mean over the batch"
        )
    if isinstance(task, MeasuresOwnMetrics):
        own = _numbers(task.metrics(outputs, targets), "metrics()")
        return {"loss": float(loss), **own}
    if targets.is_floating_point():
        return {"loss": float(loss)}
    return {"loss": float(loss), "accuracy": _accuracy(outputs, targets)}


def _numbers(metrics: Mapping[str, object], method: str) -> dict[str, float]:
    """Return a task's own metrics as plain numbers; a tensor of one number will do."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}  # type: ignore[arg-type]  # tried
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the task's {method} must return a dict of names and numbers") from error


def _outputs(model: nn.Module, inputs: Tensor, device: torch.device) -> Tensor:
    """Return the outputs for all inputs, computed as in use, not as in training."""
    if device.type != "cpu":
        model = copy.deepcopy(model).to(device)
    starts = range(0, len(inputs), _BLOCK)
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            return torch.cat([model(inputs[s : s + _BLOCK].to(device)).cpu() for s in starts])
    finally:
        # Module by module: a task may have set a part of its model to evaluation for good.
        for module, training in was_training.items():
            module.training = training


def _accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of test records whose class is predicted rightly."""
    if outputs.ndim > 1 and outputs.shape[1] > 1:
        predicted = outputs.argmax(dim=1)
    else:
        predicted = (outputs > 0).to(torch.int64)
    if predicted.numel() != targets.numel():
        raise ConfigError(
            f"the model's outputs have shape {tuple(outputs.shape)}, the test targets "
            f"{tuple(targets.shape)}; return one class label per record, or give the task a "
            "method metrics(outputs, targets)"
        )
    right = predicted.reshape(-1) == targets.reshape(-1)
    return float(right.double().mean())
