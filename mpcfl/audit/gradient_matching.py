"""Gradient inversion: find inputs whose mean gradient is the one that was seen.

The attacker knows the public model, the task and the number of records behind a vector, takes
the labels from the gradient of the last bias, and moves images within the range of a pixel
until their mean gradient has the direction of the one seen, by L-BFGS from several random
starts. The best fit is its answer; it never sees the originals.

Source: Zhu, Liu, Han 2019 (arXiv 1906.08935), section 3, for the matching of gradients; Zhao,
Mopuri, Bilen 2020 (arXiv 2001.02610), section 3, for labels from a gradient, here extended
to counts per class; Geiping et al. 2020 (arXiv 2003.14053), section 4, for the cosine, which
a wrong scale leaves as it is, and for pixels held within their range. A stronger attack may
exist: an image prior, other losses, a longer search.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, minimize
from torch import Tensor, nn

from mpcfl.dp.sampler import BitSource, draw_discrete_gaussian, sample_discrete_gaussian
from mpcfl.learn.task import Task

Reals = NDArray[np.float64]

# Pixels in the task's own scale.
PIXEL_LOW, PIXEL_HIGH = -1.0, 1.0
_START_STD = 0.3
# A discrete Gaussian of this sigma, scaled down, is a normal draw to 16 bits.
_START_SIGMA = 1 << 16
_MEMORY = 20
# Below this the fit is exact in float32, in which gradients are made.
_FIT_TOLERANCE = 1e-15


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard the attacker tries, equally for everything that it attacks.

    Attributes:
        restarts: random starts; the best fit counts.
        iterations: of L-BFGS per start, at most.
    """

    restarts: int = 4
    iterations: int = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Attacker:
    """What the attacker knows before it sees any vector. Public.

    Attributes:
        model: the global model; its last parameter is the bias of the output layer.
        task: gives the loss.
        guess: an image that is likely beforehand, shape (pixels,), in the task's scale.
    """

    model: nn.Module
    task: Task
    guess: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """The attacker's answer.

    Attributes:
        images: shape (records, pixels), in [-1, 1].
        misfit: one minus the cosine between the images' mean gradient and the one seen.
        restart: which start gave it.
    """

    images: Reals = field(repr=False)
    misfit: float
    restart: int


def invert(
    attacker: Attacker, gradient: Reals, records: int, effort: Effort, bits: BitSource | None = None
) -> Fit:
    """Reconstruct the records behind a mean gradient.

    Args:
        attacker: what is known beforehand.
        gradient: mean gradient as the attacker reads it, shape (dim,).
        records: number of records in the mean.
        effort: how hard to try.
        bits: for the starting points; None takes the operating system's.
    """
    model = copy.deepcopy(attacker.model).double()
    known = Attacker(model, attacker.task, attacker.guess.double())
    seen = torch.tensor(gradient, dtype=torch.float64)
    labels = guess_labels(known, seen, records)
    pixels = attacker.guess.numel()
    fits = [
        _fit(known, seen, labels, _start(records * pixels, bits), effort.iterations)
        for _ in range(effort.restarts)
    ]
    best = int(np.argmin([misfit for _, misfit in fits]))
    images, misfit = fits[best]
    return Fit(images.reshape(records, pixels), misfit, best)


def guess_labels(attacker: Attacker, gradient: Tensor, records: int) -> Tensor:
    """Return the labels that the gradient of the output bias tells, in any order.

    With softmax and cross-entropy it is the mean of probability minus one-hot label; at an
    untrained model the probabilities are about those of a likely image.
    """
    with torch.no_grad():
        expected = torch.softmax(attacker.model(attacker.guess.unsqueeze(0))[0], dim=0)
    counts = records * (expected - gradient[-len(expected) :])
    labels = []
    for _ in range(records):
        label = int(torch.argmax(counts))
        labels.append(label)
        counts[label] -= 1
    return torch.tensor(labels)


def _start(size: int, bits: BitSource | None) -> Reals:
    if bits is None:
        draws = sample_discrete_gaussian(sigma=_START_SIGMA, size=size)
    else:
        draws = draw_discrete_gaussian(_START_SIGMA, size, bits)
    start: Reals = np.clip(draws * (_START_STD / _START_SIGMA), PIXEL_LOW, PIXEL_HIGH)
    return start


def _fit(
    attacker: Attacker, seen: Tensor, labels: Tensor, start: Reals, iterations: int
) -> tuple[Reals, float]:
    """Descend from one start; return the images, flat, and their misfit."""
    parameters = [p for p in attacker.model.parameters() if p.requires_grad]
    direction = seen / torch.linalg.vector_norm(seen)

    def misfit(flat: Reals) -> tuple[float, Reals]:
        images = torch.tensor(flat).reshape(len(labels), -1).requires_grad_()
        loss = attacker.task.loss(attacker.model(images), labels)
        parts = torch.autograd.grad(loss, parameters, create_graph=True)
        mean_gradient = torch.cat([part.reshape(-1) for part in parts])
        cosine = torch.dot(direction, mean_gradient) / torch.linalg.vector_norm(mean_gradient)
        value = 1.0 - cosine
        (slope,) = torch.autograd.grad(value, images)
        return float(value.detach()), slope.numpy().reshape(-1)

    options = {"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": _MEMORY}
    found = minimize(
        misfit,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(PIXEL_LOW, PIXEL_HIGH)] * len(start),
        options=options | {"ftol": _FIT_TOLERANCE, "gtol": 0.0},
    )
    return found.x, float(found.fun)


def match(originals: Reals, images: Reals) -> Reals:
    """Return for every original the image assigned to it, so that the total error is least.

    The gradient does not tell the order of the records (Hungarian algorithm; Kuhn 1955).

    Args:
        originals: shape (k, pixels).
        images: shape (m, pixels), m >= k.
    """
    errors: Reals = np.mean((originals[:, None] - images[None]) ** 2, axis=2)
    _, columns = linear_sum_assignment(errors)
    matched: Reals = images[columns]
    return matched
