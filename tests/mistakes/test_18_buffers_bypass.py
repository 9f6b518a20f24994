"""Mistake 18: buffers bypass clip and noise: batch statistics, counters, integer tensors.

Who made it: state dicts that are averaged whole. Opacus' validator refuses batch normalization
for that reason; FLIP#833 is a regression on int64 buffers. What goes wrong: running means are
means of private records, and leave the party as they are. What would have to break here: a
model with batch normalization is accepted, a buffer becomes part of the vector that is summed,
or local training changes a buffer of the model that all parties share.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpcfl.config import Unit
from mpcfl.dp import plan_for_job
from mpcfl.errors import ConfigError
from mpcfl.learn.model import check_model, flat_parameters, model_digest
from mpcfl.round import run_rounds

NORMALIZATIONS = [
    nn.BatchNorm1d(2),
    nn.BatchNorm2d(2),
    nn.SyncBatchNorm(2),
    nn.BatchNorm1d(2, track_running_stats=False),
    nn.LazyBatchNorm1d(),
]


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("layer", NORMALIZATIONS, ids=lambda layer: type(layer).__name__)
def test_batch_normalization_is_refused_however_deep(layer, unit):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Identity(), layer))
    with pytest.raises(ConfigError, match=r"BatchNorm.*GroupNorm"):
        check_model(model, unit)


class Counting(nn.Module):
    """A model that keeps private statistics in buffers, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += len(inputs)
            self.mean += inputs.detach().mean(dim=0)
        return self.linear(inputs)


@pytest.fixture
def buffers_stay_home(job_of, line_task):
    """Tell whether a run leaves no trace of its data in the buffers of the public model."""

    class CountingTask(line_task):
        def model(self):
            return Counting()

    def check() -> bool:
        public = run_rounds(job_of(CountingTask, training={"local_steps": 3}))
        return int(public.model.seen) == 0 and not public.model.mean.any()

    return check


def test_buffers_of_the_public_model_see_no_record(buffers_stay_home, sabotage):
    assert buffers_stay_home()
    # Training on the shared model itself is the usual way to get this wrong.
    with sabotage("mpcfl.learn.train:copy.deepcopy", lambda right, model: model):
        assert not buffers_stay_home()


def test_no_buffer_is_part_of_the_vector_that_is_summed(job_of, line_task, sabotage):
    model = Counting()

    def holds_parameters_only() -> bool:
        return flat_parameters(model).size == 3

    assert holds_parameters_only()
    assert plan_for_job(job_of(line_task), flat_parameters(model).size).dim == 3

    def whole_state(right, module):
        return [*module.parameters(), *(buffer.double() for buffer in module.buffers())]

    with sabotage("mpcfl.learn.model:_trainable", whole_state):
        assert not holds_parameters_only()


def test_parties_compare_buffers_before_they_start():
    first, second = Counting(), Counting()
    assert model_digest(first) == model_digest(second)
    second.seen += 1
    assert model_digest(first) != model_digest(second)
