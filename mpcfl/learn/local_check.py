"""Refuse what local DP-SGD can't train soundly, before any private record is read.

Runs alike at all parties, on the public model and public test records only, so its errors may
say everything. It never changes the model: a layer that is replaced is another model, and
whoever chose the model has to choose that too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from mpcfl.config import TrainingTable, Unit
from mpcfl.dp.grid import round_grid
from mpcfl.dp.plan import NoisePlan
from mpcfl.errors import ConfigError
from mpcfl.learn.local_dp import RecordGradients, load_exact_optimizer
from mpcfl.learn.model import check_model
from mpcfl.learn.task import Records, Task

Matrix = NDArray[np.float64]

# Test records that are tried: two would do to see that one changes another's gradient.
_TRIED = 4
# Two float32 computations of one gradient agree far better than this, relative to its norm;
# a layer that mixes records, or a parameter that Opacus misses, changes it far more.
_TOLERANCE = 1e-3


def check_local_training(
    model: nn.Module, task: Task, training: TrainingTable, plan: NoisePlan
) -> None:
    """Refuse a model or a loss that Opacus can't differentiate record by record.

    Args:
        model: the global model; left unchanged. Torch's generator is left as it was, too.
        task: gives the loss and the test records.
        training: gives the learning rate.
        plan: of the local placement.

    Raises:
        BackendUnavailable: Opacus is not installed.
        ConfigError: the model has batch normalization or another layer that Opacus does not
            support, fails, or does not give every record a gradient of its own.
    """
    check_local_layers(model)
    check_model(model, Unit.RECORD)
    with torch.random.fork_rng(devices=[]):
        inputs, targets = task.test_data()
        tried = (inputs[:_TRIED], targets[:_TRIED])
        # Dropout can't mix records, and without it passes can be compared.
        plain = _without_dropout(model)
        rows, repeated = (_opacus_rows(plain, task, training, plan, tried) for _ in range(2))
        if np.array_equal(rows, repeated, equal_nan=True):
            _check_rows(rows, _rows_alone(plain, task, tried))
        else:
            _check_neighbors(lambda some: _opacus_rows(plain, task, training, plan, some), tried)


def _without_dropout(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = 0.0
    return plain


def check_local_layers(model: nn.Module) -> None:
    """Refuse a layer that Opacus refuses, with its words and what it would do about it.

    Raises:
        BackendUnavailable: Opacus is not installed.
        ConfigError: there is such a layer.
    """
    load_exact_optimizer()
    with torch.random.fork_rng(devices=[]):
        _check_layers(copy.deepcopy(model).train())


def _check_layers(model: nn.Module) -> None:
    from opacus.validators import ModuleValidator

    # Opacus says the same of every layer of a kind; once is enough.
    words = dict.fromkeys(str(error) for error in ModuleValidator.validate(model, strict=False))
    if not words:
        return
    try:
        changes = "; ".join(_replacements(model, ModuleValidator.fix(model)))
    except Exception:  # noqa: BLE001 - Opacus copies a model by pickling it, which not all allow
        changes = ""
    remedy = (
        f"opacus.validators.ModuleValidator.fix would make these changes: {changes}; make them in "
        "the task's model(), for mpcfl never changes a model by itself"
        if changes
        else "replace that layer in the task's model()"
    )
    raise ConfigError(
        "the task's model has a layer that privacy.placement = \"local\" can't train; Opacus says: "
        f'"{" ".join(words)}" {remedy}'
    )


def _replacements(model: nn.Module, fixed: nn.Module) -> Iterator[str]:
    """Yield what differs between a model and its fixed form, outermost layers only."""
    before = dict(model.named_modules())
    done: list[str] = []
    for name, layer in fixed.named_modules():
        inside = any(name.startswith(f"{outer}.") or not outer for outer in done)
        if inside or name not in before or repr(before[name]) == repr(layer):
            continue
        same_type = type(before[name]) is type(layer)
        if same_type and list(layer.children()):
            continue  # One of its own layers differs, and comes later.
        done.append(name)
        place = f'at "{name}"' if name else "as the whole model"
        yield f"{_summary(before[name], same_type)} {place} becomes {_summary(layer, same_type)}"


def _summary(layer: nn.Module, in_full: bool) -> str:
    return repr(layer) if in_full else type(layer).__name__


def _opacus_rows(
    model: nn.Module, task: Task, training: TrainingTable, plan: NoisePlan, tried: Records
) -> Matrix:
    """Return the gradients of all tried records in one pass, by Opacus."""
    try:
        local_model = copy.deepcopy(model).train()
        engine = load_exact_optimizer().ExactEngine()
        module, optimizer = engine.attach(
            local_model, round_grid(plan, 0), training.learning_rate, None
        )
        before = [buffer.clone() for buffer in local_model.buffers()]
        rows = RecordGradients(module, optimizer, task).of_batch(*tried)
        pairs = zip(before, local_model.buffers(), strict=True)
        if not all(torch.equal(old, new) for old, new in pairs):
            raise ValueError("a buffer changes with the records")
        return rows
    except Exception as error:
        raise ConfigError(
            "Opacus can't differentiate the task's model or loss record by record; build the model "
            "from layers of torch.nn without buffers, each called in forward() with the records "
            "as its first dimension, and keep the loss to operations that torch.func.vmap "
            'supports, or set privacy.placement = "distributed" '
            f"({type(error).__name__}: {_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _rows_alone(model: nn.Module, task: Task, tried: Records) -> Matrix:
    """Return the same gradients by plain autograd, every record in a pass of its own."""
    local_model = copy.deepcopy(model).train()
    trainable = [p for p in local_model.parameters() if p.requires_grad]
    rows = []
    for one in torch.split(torch.arange(len(tried[0])), 1):
        loss = task.loss(local_model(tried[0][one]), tried[1][one])
        parts = torch.autograd.grad(loss, trainable, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if part is None else part).reshape(-1).double()
                    for p, part in zip(trainable, parts, strict=True)
                ]
            ).numpy()
        )
    return np.array(rows)


def _check_neighbors(rows_of: Callable[[Records], Matrix], tried: Records) -> None:
    """Refuse rows that change with another record, where random numbers are drawn in a pass.

    Every pass starts from the same state of torch's generator, so equal places see equal numbers.
    """

    def seeded(records: Records) -> Matrix:
        torch.manual_seed(0)  # noqa: TID251  public records, inside a fork of the generator
        return rows_of(records)

    places = np.arange(len(tried[0]))
    rows = seeded(tried)
    for place in places:
        order = torch.tensor(np.where(places == place, (place + 1) % len(places), places))
        others = places != place
        _check_rows(seeded((tried[0][order], tried[1][order]))[others], rows[others])


def _check_rows(rows: Matrix, alone: Matrix) -> None:
    difference = np.linalg.norm(rows - alone, axis=1)
    # Written so that NaN, which compares as false, is no agreement.
    if not np.all(difference <= _TOLERANCE * np.linalg.norm(alone, axis=1) + 1e-12):
        raise ConfigError(
            "the gradients that Opacus finds for the task's test records depend on other records, "
            "or are not those of each record alone: a layer of the model mixes the records of a "
            "batch, or a parameter is used outside the forward() of its own layer; change the "
            "model, or set "
            'privacy.placement = "distributed"'
        )
