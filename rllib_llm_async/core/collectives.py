"""What several learners tell each other; a learner on its own is a group of one."""

from __future__ import annotations

from typing import Any

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


def gather_from_learners(value: Any) -> list[Any]:
    """What each of the learners gives, anything that can be pickled, as above."""
    if num_learners() == 1:
        return [value]
    values: list[Any] = [None] * num_learners()
    dist.all_gather_object(values, value)
    return values


def distinct_over_learners(values: Tensor) -> list[int]:
    """The different integers in the tensors of all learners, ascending, as above."""
    of_each = gather_from_learners(values.unique().tolist())
    return sorted(set().union(*of_each))


def _reduce(values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if num_learners() == 1:
        return values
    reduced = values.detach().clone()
    dist.all_reduce(reduced, operation)
    return reduced
