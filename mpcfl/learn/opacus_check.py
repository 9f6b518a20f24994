"""Refuse what Opacus can't differentiate record by record, before any private record is read.

Runs alike at all parties, on the public model and public test records only, so its errors may
say everything. It never changes the model: a layer that is replaced is another model, and
whoever chose the model has to choose that too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from mpcfl.errors import ConfigError, first_line
from mpcfl.learn.opacus_gradients import (
    OneByOne,
    OpacusGradients,
    gradient_copy,
    import_with_opacus,
    with_hooks,
)
from mpcfl.learn.task import Records, Task, example_records

Matrix = NDArray[np.float64]
Rows = Callable[[Records], Matrix]

# Two float32 computations of one gradient agree far better than this, relative to its norm;
# a layer that mixes records, or a parameter that Opacus misses, changes it far more.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class OpacusUse:
    """What Opacus is asked for.

    Attributes:
        instead: what a model does that Opacus can't differentiate, as an error says it.
        device: where the model is trained.
        at_once: most records in one pass.
    """

    instead: str
    device: torch.device
    at_once: int


def check_layers(model: nn.Module, chosen: str) -> None:
    """Refuse a layer that Opacus refuses, with its words and what it would do about it.

    Args:
        model: the global model; left unchanged.
        chosen: what in the job asks for Opacus.

    Raises:
        BackendUnavailable: Opacus is not installed.
        ConfigError: there is such a layer.
    """
    validators = import_with_opacus("opacus.validators", chosen)
    with torch.random.fork_rng(devices=[]):
        copied = copy.deepcopy(model).train()
        # Whatever a task's own train() does: Opacus asks for this first.
        copied.training = True
        # Opacus says the same of every layer of a kind; once is enough.
        errors = validators.ModuleValidator.validate(copied, strict=False)
        words = " ".join(dict.fromkeys(str(error) for error in errors))
        if not words:
            return
        try:
            changes = "; ".join(_replacements(copied, validators.ModuleValidator.fix(copied)))
        except Exception:  # noqa: BLE001 - Opacus copies a model by pickling it, which not all allow
            changes = ""
    remedy = (
        f"opacus.validators.ModuleValidator.fix would make these changes: {changes}; make them in "
        "the task's model(), for mpcfl never changes a model by itself"
        if changes
        else "replace that layer in the task's model()"
    )
    raise ConfigError(
        f"the task's model has a layer that {chosen} can't train; Opacus says: \"{words}\" {remedy}"
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


def check_rows(model: nn.Module, task: Task, use: OpacusUse) -> None:
    """Refuse a model or a loss of which Opacus gives no record a gradient of its own.

    Args:
        model: the global model; left unchanged. Torch's generator is left as it was, too.
        task: gives the loss and the test records.
        use: where and how the model is trained, and what to name in an error.

    Raises:
        ConfigError: it fails, a record changes another's gradient, or gradients are not right.
    """
    inputs, targets = example_records(task)
    # Records that never share a pass can't change each other's gradients.
    tried = (inputs[: use.at_once], targets[: use.at_once])
    with torch.random.fork_rng(devices=[]):
        # Dropout can't mix records, and without it passes can be compared.
        plain = _without_dropout(model)
        if use.device.type != "cpu":
            _opacus_rows(plain, task, use, tried)
        # Whether a model mixes records is no matter of the device, and on the CPU a pass can be
        # repeated with the same random numbers.
        here = replace(use, device=torch.device("cpu"))
        rows, repeated = (_opacus_rows(plain, task, here, tried) for _ in range(2))
        if np.array_equal(rows, repeated, equal_nan=True):
            alone = OneByOne(gradient_copy(plain, here.device), task, here.device)
            _compare(rows, alone(*tried), use)
        else:
            _check_neighbors(lambda some: _opacus_rows(plain, task, here, some), tried, use)


def _without_dropout(model: nn.Module) -> nn.Module:
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if isinstance(layer, _DropoutNd):
            layer.p = 0.0
    return plain


def _opacus_rows(model: nn.Module, task: Task, use: OpacusUse, tried: Records) -> Matrix:
    """Return the gradients of all tried records in one pass, by Opacus."""
    try:
        local_model = gradient_copy(model, use.device)
        rows_of = OpacusGradients(with_hooks(local_model), task, use.device)
        return _rows_without_memory(lambda: rows_of(*tried), local_model)
    except Exception as error:
        raise ConfigError(
            "Opacus can't differentiate the task's model or loss record by record; build the model "
            "from layers of torch.nn without buffers, each called in forward() with the records "
            "as its first dimension, and keep the loss to operations that torch.func.vmap "
            f"supports, or {use.instead} ({type(error).__name__}: {first_line(error)})"
        ) from error


def _rows_without_memory(rows_of: Callable[[], Matrix], model: nn.Module) -> Matrix:
    """Return the rows of a pass that leaves every buffer of its model as it was."""
    before = [buffer.clone() for buffer in model.buffers()]
    rows = rows_of()
    if not all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True)):
        raise ValueError("a buffer changes with the records")
    return rows


def check_one_by_one(model: nn.Module, task: Task, use: OpacusUse) -> None:
    """Refuse a model or a loss that fails, or remembers a record, where each passes alone.

    Raises:
        ConfigError: it does.
    """
    inputs, targets = example_records(task)
    try:
        with torch.random.fork_rng(devices=[]):
            local_model = gradient_copy(model, use.device)
            rows_of = OneByOne(local_model, task, use.device)
            _rows_without_memory(lambda: rows_of(inputs[:1], targets[:1]), local_model)
    except Exception as error:
        raise ConfigError(
            "the task's model or loss fails on one of its own test records, or changes a buffer of "
            f"the model with it: {first_line(error)}"
        ) from error


def _check_neighbors(rows_of: Rows, tried: Records, use: OpacusUse) -> None:
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
        _compare(seeded((tried[0][order], tried[1][order]))[others], rows[others], use)


def _compare(rows: Matrix, alone: Matrix, use: OpacusUse) -> None:
    difference = np.linalg.norm(rows - alone, axis=1)
    # Written so that NaN, which compares as false, is no agreement.
    if not np.all(difference <= _TOLERANCE * np.linalg.norm(alone, axis=1) + 1e-12):
        raise ConfigError(
            "the gradients that Opacus finds for the task's test records depend on other records, "
            "or are not those of each record alone: a layer of the model mixes the records of a "
            "batch, or a parameter is used outside the forward() of its own layer; change the "
            f"model, or {use.instead}"
        )
