"""Adam's moments in host memory, but for the optimizer step.

They are half of what full fine-tuning holds, and no pass needs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch.optim import Optimizer


@contextlib.contextmanager
def moments_on(device: torch.device, optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Within it what optimizers hold of parameters is there; afterwards on the host."""
    optimizers = list(optimizers)
    move_moments(optimizers, device)
    try:
        yield
    finally:
        move_moments(optimizers, torch.device("cpu"))


def move_moments(optimizers: Iterable[Optimizer], device: torch.device) -> None:
    """Moves them; step counts stay where the optimizer wants them."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim():
                    state[name] = value.to(device)
