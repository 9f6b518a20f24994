"""Where a party trains and measures: `training.device`, the CPU or a GPU.

Copies of the model and blocks of records go to the device; the global model, the parameters as a
vector, the rows of an update and all of the protocol stay on the CPU. So a GPU makes training
faster and changes no guarantee. It rounds otherwise than a CPU does, which matters to nobody:
parties need not agree on the last bits of their own gradients.

What it does not protect against: whoever runs other programs on the same GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mpcfl.dp.sampler import draw_generator_seed
from mpcfl.errors import ConfigError


def check_device(name: str) -> None:
    """Refuse a device that this rank does not have.

    Args:
        name: the job's ``training.device``.

    Raises:
        ConfigError: torch finds no such GPU here.
    """
    device = torch.device(name)
    if device.type == "cpu":
        return
    found = torch.cuda.device_count()
    if (device.index or 0) < found:
        return
    what = f'training.device = "{name}", but torch {torch.__version__} finds'
    if found:
        raise ConfigError(f'{what} {found} GPUs here, "cuda:0" to "cuda:{found - 1}"; name one')
    raise ConfigError(
        f'{what} no GPU here; set training.device = "cpu", or run on a machine with a GPU, its '
        "driver and a build of torch for CUDA"
    )


@contextmanager
def secret_device_generator(device: torch.device) -> Iterator[None]:
    """Seed a GPU's generator with secret bits, and put it back afterwards.

    Dropout on a GPU draws its masks there, not from torch's generator on the CPU. Threads that
    share a GPU must take turns, as `blocks.py` lets them. On the CPU this does nothing.
    """
    if device.type != "cuda":
        yield
        return
    torch.cuda.init()  # type: ignore[no-untyped-call]  # of torch
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    state = generator.get_state()
    generator.manual_seed(draw_generator_seed())
    try:
        yield
    finally:
        generator.set_state(state)
