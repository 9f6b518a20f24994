"""Tasks that train by themselves: a party's own code, of which only the result is seen.

The update is what that code changed: new minus old parameters, clipped, quantized, noised and
protected like any other. Nothing is assumed of the code: how often it looks at a record, or how
much one record moves its result, is unknown, so only a whole party can be hidden. Its failure is
an update of zero at party level.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mpcfl.config import Job, Placement, Unit, Weighting
from mpcfl.errors import ConfigError
from mpcfl.learn.model import flat_change
from mpcfl.learn.task import CountsExamples, Records, Task, TrainsItself

# Keys of `[training]` that steer mpcfl's own local steps, which such a task does without.
_UNUSED = ("local_steps", "batch_size", "learning_rate", "microbatch", "proximal_mu", "gradients")


def check_own_training(task: Task, job: Job) -> None:
    """Refuse a job that asks for more than a task that trains by itself can give.

    Raises:
        ConfigError: the job hides records, places noise inside the local steps, weighs parties by
            numbers of records that the task does not tell, or sets keys that would do nothing.
    """
    if not isinstance(task, TrainsItself):
        return
    privacy = job.privacy
    if privacy.placement is Placement.LOCAL:
        raise ConfigError(
            'privacy.placement = "local" adds noise to every local step, and this task trains by '
            'code of its own, whose steps nobody sees; set privacy.unit = "party" and leave '
            "placement out, or write a task with a loss (docs/tasks.md)"
        )
    if privacy.unit is Unit.RECORD:
        raise ConfigError(
            'privacy.unit = "record" needs the gradient of each record, and this task trains by '
            'code of its own, which shows only its result; set privacy.unit = "party" (or '
            '"none"), or write a task with a loss (docs/tasks.md)'
        )
    counts = isinstance(task, CountsExamples) and task.counts_examples
    if job.parties.weighting is Weighting.PRIVATE and not counts:
        raise ConfigError(
            'parties.weighting = "private" needs the number of records of each party before it '
            "trains; give the task num_examples, or set another weighting"
        )
    for key in (*_UNUSED, "device"):
        if job.training.is_chosen(key):
            raise ConfigError(
                f"training.{key} would do nothing: this task trains by code of its own; leave it "
                "out, and steer that code by task_options"
            )


def own_update(
    model: nn.Module, data: Records, task: TrainsItself, round_id: int
) -> NDArray[np.float64]:
    """Return what a task's own training changes: new minus old parameters.

    Args:
        model: the global model; left unchanged.
        data: of this party.
        task: trains.
        round_id: index of the round, from 0.

    Returns:
        The update, shape (1, dim), float64.

    Raises:
        ConfigError: the trained model has other parameters, or the code ended the process.
        Exception: whatever that code raises.

    Privacy: depends on all of the party's records; the party is the unit.
    """
    try:
        trained = task.train_party(copy.deepcopy(model), data, round_id)
    except SystemExit as error:
        raise ConfigError("the task's training wants to end the process; let it return") from error
    if not isinstance(trained, nn.Module) or _shapes(trained) != _shapes(model):
        raise ConfigError(
            "the task's training returned other parameters than it got; return a model with the "
            "same trainable parameters, in the same order"
        )
    return flat_change(trained, model)[np.newaxis]


def _shapes(model: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in model.parameters() if p.requires_grad]
