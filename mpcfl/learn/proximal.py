"""FedProx: a term in the local loss that holds local steps back to the global model.

With `training.proximal_mu` = mu a party descends on F(w) + mu / 2 ||w - w_global||^2, where F is
its own loss. It keeps parties with unlike data from drifting apart over many local steps.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020 (arXiv 1812.06127), equation 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def hold_back(optimizer: torch.optim.Optimizer, model: nn.Module, mu: float) -> None:
    """Add the gradient of the proximal term, mu (w - w_global), before every step.

    The term knows no record: w is where the last step led, w_global is public. So where steps are
    noised (`local_dp.py`) it is added to the noised gradient, which is what this hook does, and
    costs no privacy: it is post-processing of what was released already. Added to each
    record's gradient instead it would be clipped with it, and cost accuracy for nothing.

    Args:
        optimizer: of a copy of the global model, in one group; its steps use ``p.grad``.
        model: the global model, whose parameters stay as they are; its trainable ones in the
            order of the optimizer's.
        mu: weight of the term; with 0 nothing is done.
    """
    if mu == 0.0:
        return
    trained = optimizer.param_groups[0]["params"]
    starts = [p.detach() for p in model.parameters() if p.requires_grad]
    # Without a copy, unless the party trains on another device.
    public = [s.to(p.device) for s, p in zip(starts, trained, strict=True)]

    def add_term(*_: Any) -> None:
        for parameter, start in zip(trained, public, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter.detach() - start, alpha=mu)

    optimizer.register_step_pre_hook(add_term)
