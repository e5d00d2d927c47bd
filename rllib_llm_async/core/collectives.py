"""What several learners tell each other; a learner on its own is a group of one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def num_learners() -> int:
    """Members of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def learner_rank() -> int:
    """This learner's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_learners(values: Tensor) -> Tensor:
    """Sum of a tensor over all learners, which have to call it together."""
    return _reduce(values, dist.ReduceOp.SUM)


def max_over_learners(values: Tensor) -> Tensor:
    """Elementwise maximum of a tensor over all learners, as above."""
    return _reduce(values, dist.ReduceOp.MAX)


def _reduce(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if num_learners() == 1:
        return values
    reduced = values.detach().clone()
    dist.all_reduce(reduced, operation)
    return reduced


def standardised(values: Tensor, *, min_std: float) -> Tensor:
    """(values - mean) / max(std, min_std), both over all learners' values together.

    Args:
        values: float64 ``[n]``, n may differ between learners and be 0.
        min_std: Lower bound of the divisor.

    Returns:
        float64 ``[n]``; exact zeros where all values of all learners are the same.
    """
    count, total = sum_over_learners(
        torch.stack([values.new_tensor(len(values)), values.sum()])
    )
    centred = values - total / count.clamp(min=1)
    spread = values.new_tensor([-float("inf"), -float("inf")])
    if len(values):
        spread = torch.stack([values.max(), -values.min()])
    highest, lowest = max_over_learners(spread)
    if highest == -lowest:
        # Rounding of the mean is no signal, and an optimizer would scale it up.
        return torch.zeros_like(values)
    variance = sum_over_learners(centred.square().sum()) / count
    return centred / variance.sqrt().clamp(min=min_std)
