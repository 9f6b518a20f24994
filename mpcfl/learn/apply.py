"""Stage 8, apply: from the opened mean to the new model, alike at every party.

Uses float64 additions, products, quotients and square roots only, each rounded as IEEE 754
demands, one NumPy operation at a time: the result is the same bit for bit on every machine.
It is post-processing of the opened sum, so it costs no privacy.

Source: McMahan et al. 2017 (arXiv 1602.05629) for FedAvg; Hsu, Qi, Brown 2019
(arXiv 1909.06335) for its server momentum; Reddi et al. 2021 (arXiv 2003.00295),
Algorithm 2, for FedAdam.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpcfl.config import Optimizer, ServerTable
from mpcfl.dp.pieces import is_long, pieces
from mpcfl.learn.model import Vector

_NOTHING: Vector = np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """What the server step remembers between rounds: public, plain arrays, equal at all parties.

    Attributes:
        first_moment: running mean (FedAdam) or momentum (FedAvg) of the updates, shape
            (dim,), float64; shape (0,) for FedAvg without momentum, which remembers nothing.
        second_moment: running mean of their squares, shape (dim,), float64; FedAdam only, shape
            (0,) otherwise.
    """

    first_moment: Vector
    second_moment: Vector


def initial_state(dim: int, server: ServerTable) -> ServerState:
    """Return the state before round 0."""
    first, second = _lengths(dim, server)
    # Algorithm 2 asks for v_{-1} >= tau^2 and m_{-1} = 0.
    start = server.adaptivity * server.adaptivity
    return ServerState(np.zeros(first), np.full(second, start))


def is_fitting(state: ServerState, dim: int, server: ServerTable) -> bool:
    """Tell whether a state has all that the step needs; more, as earlier versions kept, is none."""
    first, second = _lengths(dim, server)
    return state.first_moment.size in (first, dim) and state.second_moment.size in (second, dim)


def _lengths(dim: int, server: ServerTable) -> tuple[int, int]:
    """Return how long both vectors of the state are."""
    if server.optimizer is Optimizer.FEDADAM:
        return dim, dim
    return (dim if server.momentum > 0 else 0), 0


def apply_mean(
    parameters: Vector, mean: Vector, state: ServerState, server: ServerTable
) -> tuple[Vector, ServerState]:
    """Take one server step.

    Args:
        parameters: the global model, shape (dim,), float64; left unchanged. Keep this vector
            between rounds and not the model's own float32 values, which round it.
        mean: the opened mean of the updates, or of the negative gradients, shape (dim,),
            float64: a direction of descent, so it is added. A long one is the step's to use: the
            new parameters may lie there.
        state: as `initial_state` or the last round returned it; left unchanged.
        server: which step, and its constants.

    Returns:
        The new parameters, shape (dim,), float64, and the new state.
    """
    dim = parameters.size
    if parameters.shape != mean.shape or not is_fitting(state, dim, server):
        raise ValueError(
            f"parameters {parameters.shape}, mean {mean.shape} and state "
            f"{state.first_moment.shape} differ in shape"
        )
    step = _fedadam if server.optimizer is Optimizer.FEDADAM else _fedavg
    applied = mean if is_long(dim) else np.empty_like(mean)
    first, second = map(np.empty, _lengths(dim, server))
    for piece in pieces(dim):
        before = ServerState(state.first_moment[piece], state.second_moment[piece])
        applied[piece], after = step(parameters[piece], mean[piece], before, server)
        first[piece], second[piece] = after.first_moment, after.second_moment
    return applied, ServerState(first, second)


def _fedavg(
    parameters: Vector, mean: Vector, state: ServerState, server: ServerTable
) -> tuple[Vector, ServerState]:
    """McMahan et al., with the momentum of Hsu et al., section 4.2, where there is one."""
    kept = server.momentum * state.first_moment if server.momentum > 0 else 0.0
    momentum = kept + mean
    first = momentum if server.momentum > 0 else _NOTHING
    return parameters + server.learning_rate * momentum, ServerState(first, _NOTHING)


def _fedadam(
    parameters: Vector, mean: Vector, state: ServerState, server: ServerTable
) -> tuple[Vector, ServerState]:
    """Algorithm 2 of Reddi et al.; without Adam's bias correction, as there."""
    first = server.beta1 * state.first_moment + (1.0 - server.beta1) * mean
    second = server.beta2 * state.second_moment + (1.0 - server.beta2) * (mean * mean)
    step = server.learning_rate * first / (np.sqrt(second) + server.adaptivity)
    return parameters + step, ServerState(first, second)
