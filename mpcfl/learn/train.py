"""Stage 1, train: from the public model and a party's own data to its update.

At party level an update is the change that some local steps of gradient descent make. At
record level it is one clipped gradient per sampled record, so that adding or removing a
record changes exactly one summand; this file yields them unclipped.

Everything returned here is private to the party and leaves it only clipped, quantized,
noised and protected. Values that are not finite are passed on: the clip stage counts them
as zero, because stopping on them would tell something about the data.

Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1, for the per-record gradients;
McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1, for the local steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mpcfl.config import TrainingTable
from mpcfl.errors import ConfigError, first_line
from mpcfl.learn.blocks import Gradients, RecordBlocks, rows_at_once
from mpcfl.learn.device import check_device, secret_device_generator
from mpcfl.learn.model import flat_change, flat_rows, trainable_size
from mpcfl.learn.opacus_check import OpacusUse, check_layers, check_one_by_one, check_rows
from mpcfl.learn.opacus_gradients import OneByOne, OpacusGradients, gradient_copy, with_hooks
from mpcfl.learn.own_training import own_update
from mpcfl.learn.proximal import hold_back
from mpcfl.learn.quiet import muted
from mpcfl.learn.task import Records, Task, TrainsItself, example_records

Matrix = NDArray[np.float64]
_Tensors = dict[str, Tensor]


def local_update(
    model: nn.Module, data: Records, task: Task, training: TrainingTable, round_id: int
) -> Matrix:
    """Return what the local steps change: new minus old parameters.

    The batches run through the records in their own order, step after step and round after
    round, and start again at the end: no randomness, so a run can be repeated exactly.

    Args:
        model: the global model; left unchanged.
        data: this party's records, at least one.
        task: gives the loss, or trains by itself.
        training: ``local_steps``, ``batch_size`` (all records, if it is larger) and
            ``learning_rate`` of plain gradient descent, ``proximal_mu`` and ``device``.
        round_id: index of the round, from 0.

    Returns:
        The update, shape (1, dim), float64: a block with one row, as at record level.

    Raises:
        ConfigError: the task trains by itself and returns no such model.

    Privacy: depends on all of the party's records; the party is the unit.
    """
    if isinstance(task, TrainsItself):
        return own_update(model, data, task, round_id)
    inputs, targets = data
    device = torch.device(training.device)
    local_model = copy.deepcopy(model).train().to(device)
    trainable = [p for p in local_model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=training.learning_rate)
    hold_back(optimizer, model, training.proximal_mu)
    for step in range(training.local_steps):
        batch = _batch(len(inputs), training.batch_size, round_id * training.local_steps + step)
        optimizer.zero_grad()
        loss = task.loss(local_model(inputs[batch].to(device)), targets[batch].to(device))
        torch.autograd.backward(loss)
        optimizer.step()
    # The gradients are let go before the update takes its room.
    optimizer.zero_grad(set_to_none=True)
    return flat_change(local_model, model)[np.newaxis]


def _batch(n_records: int, batch_size: int, step: int) -> Tensor:
    """Return the record indices of one step, int64; distinct within a batch."""
    size = min(batch_size, n_records)
    return (step * size + torch.arange(size)) % n_records


def record_gradients(
    model: nn.Module, data: Records, task: Task, sample: NDArray[np.int64], training: TrainingTable
) -> Iterator[Matrix]:
    """Yield the negative gradient of each sampled record's loss, unclipped.

    Args:
        model: the global model; left unchanged. Each record passes through it alone.
        data: this party's records.
        task: gives the loss.
        sample: indices of the sampled records, shape (sampled,), int64; may be empty.
        training: ``gradients`` and ``device`` say how and where. ``microbatch`` is the most
            records whose gradients are held at a time. That takes about microbatch x dim x 12
            bytes, but never more than 64 MiB, or one record's, whatever it is; it changes
            nothing else.

    Yields:
        Blocks of shape (k, dim), float64, k <= microbatch: one row per sampled record, in
        the order of ``sample``. An empty sample yields nothing.

    Privacy: row i depends on record ``sample[i]`` and the public model only (`blocks.py` says up
    to what). A record on which the model or the loss fails becomes a row of NaN, which the clip
    stage turns into zero.
    """
    inputs, targets = example_records(task)
    blocks = RecordBlocks(
        gradients=_row_function(model, task, training),
        stand_in=(inputs[:1], targets[:1]),
        dim=trainable_size(model),
        microbatch=training.microbatch,
    )
    yield from blocks.of_sample(data, sample)


def _row_function(model: nn.Module, task: Task, training: TrainingTable) -> Gradients:
    """Return a function from k inputs and targets to negative gradients, (k, dim), float64."""
    device = torch.device(training.device)
    if training.gradients == "vmap":
        return _gradient_function(model, task, device)
    copied = gradient_copy(model, device)
    if rows_at_once(training.microbatch, trainable_size(model)) == 1:
        gradients: Gradients = OneByOne(copied, task, device)
    else:
        gradients = OpacusGradients(with_hooks(copied), task, device)

    def rows(records: Tensor, record_targets: Tensor) -> Matrix:
        flat = gradients(records, record_targets)
        return np.negative(flat, out=flat)

    return rows


def _gradient_function(model: nn.Module, task: Task, device: torch.device) -> Gradients:
    """Return the function of `_row_function` that torch.func makes of the model."""
    values = {n: p.detach().to(device) for n, p in model.named_parameters()}
    parameters = {n: values.pop(n) for n, p in model.named_parameters() if p.requires_grad}
    frozen = values
    # Copies, so that a layer which writes to a buffer can't change the global model.
    buffers = {n: b.detach().clone().to(device) for n, b in model.named_buffers()}

    def record_loss(values: _Tensors, record: Tensor, target: Tensor) -> Tensor:
        state = (values, frozen, buffers)
        outputs = functional_call(model, state, (record.unsqueeze(0),))
        return task.loss(outputs, target.unsqueeze(0))

    # "different": each record draws its own dropout mask, as it would alone.
    per_record: Callable[[_Tensors, Tensor, Tensor], _Tensors] = vmap(
        grad(record_loss), in_dims=(None, 0, 0), randomness="different"
    )

    def rows(records: Tensor, record_targets: Tensor) -> Matrix:
        # In place: at this size a second copy counts.
        with secret_device_generator(device):
            by_name = per_record(parameters, records.to(device), record_targets.to(device))
        gradients = list(by_name.values())
        by_name.clear()
        flat = flat_rows(gradients, len(records))
        return np.negative(flat, out=flat)

    return rows


def check_record_gradients(
    model: nn.Module, task: Task, training: TrainingTable | None = None
) -> None:
    """Try per-record gradients on a few public test records, before any private one is read.

    A model that fails does so here, where torch's own words may be shown, and at all
    parties alike.

    Args:
        model: the global model; left unchanged.
        task: gives the loss and the test records.
        training: as for `record_gradients`; by default as `[training]` is by default.

    Raises:
        BackendUnavailable: Opacus is asked for, and not installed.
        ConfigError: the model or the loss can't be differentiated record by record in this way,
            or the device is not there.
    """
    training = TrainingTable(rounds=1) if training is None else training
    check_device(training.device)
    if training.gradients == "opacus":
        _check_opacus(model, task, training)
        return
    inputs, targets = example_records(task)
    try:
        some = rows_at_once(2, trainable_size(model))
        _row_function(model, task, training)(inputs[:some], targets[:some])
    except Exception as error:
        raise ConfigError(
            "the task's model or loss can't be differentiated record by record; keep to "
            "operations that torch.func.vmap supports (no .item(), no branch on values, no "
            'recurrent layer), or set training.gradients = "opacus", as most language models '
            f'need, or privacy.unit = "party" (torch says: {first_line(error)})'
        ) from error


def _check_opacus(model: nn.Module, task: Task, training: TrainingTable) -> None:
    """Refuse what Opacus can't differentiate, or with one record at a time what just fails."""
    at_once = rows_at_once(training.microbatch, trainable_size(model))
    use = OpacusUse(
        instead='set training.microbatch = 1, or training.gradients = "vmap"',
        device=torch.device(training.device),
        at_once=at_once,
    )
    if at_once == 1:
        check_one_by_one(model, task, use)
        return
    check_layers(model, 'training.gradients = "opacus"')
    check_rows(model, task, use)


def check_local_update(model: nn.Module, task: Task, training: TrainingTable) -> None:
    """Try local training on two public test records, before any private one is read.

    A task that trains by itself is not tried: its code takes a party's data, not records.

    Raises:
        ConfigError: it fails, with torch's reason, or the device is not there.
    """
    check_device(training.device)
    if isinstance(task, TrainsItself):
        return
    inputs, targets = example_records(task)
    try:
        local_update(model, (inputs[:2], targets[:2]), task, training, round_id=0)
    except Exception as error:
        raise ConfigError(
            f"the task's model or loss fails on its own test records: {first_line(error)}"
        ) from error


def local_update_or_nan(
    model: nn.Module, data: Records, task: Task, training: TrainingTable, round_id: int
) -> Matrix:
    """Return `local_update`, or a row of NaN if it fails on this party's records.

    The clip stage turns the row into zero: at party level an error would tell something about
    the data, and nobody may stop for it. Nor does anybody see what the task's code prints.
    """
    try:
        with muted():
            return local_update(model, data, task, training, round_id)
    except Exception:  # noqa: BLE001 - foreign code on private records
        return np.full((1, trainable_size(model)), np.nan)
