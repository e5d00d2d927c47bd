"""Cosine of consecutive gradients: whether steps still agree on where to go.

Near 1 the steps repeat each other, near 0 they are noise to each other, and below 0 one
undoes what the other did: what a step size that is too large looks like before the
success falls.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from rllib_llm_async.core.collectives import sum_over_learners

#: Entries of a gradient that are looked at, at most. Prime, so that those of a matrix
#: do not all stand in the same columns.
MAX_ENTRIES = 65_521


class GradientCosine:
    """Compares each gradient with the one before it.

    Keeps no second gradient: of a large tensor `MAX_ENTRIES` are compared, evenly
    spread and always the same ones, which stand for the others.
    """

    def __init__(self) -> None:
        self._before: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def see(self, gradients: Mapping[Hashable, Tensor]) -> Tensor | None:
        """Takes in the gradient of the next step.

        Args:
            gradients: Of each parameter, of any shape; whole, or this learner's shares
                of them. All learners have to call it together. One that is missing
                counts as zero.

        Returns:
            A float64 scalar in [-1, 1], 0 if either is zero; None for the first.
        """
        before, now = self._before, {k: _entries(g) for k, g in gradients.items()}
        self._before = now
        if not before:
            return None
        dot, square, square_before = sum_over_learners(
            torch.stack([_dot(now, before), _dot(now, now), _dot(before, before)])
        )
        return dot / (square * square_before).sqrt().clamp(min=1e-300)


def _entries(gradient: Tensor) -> Tensor:
    """float32 ``[entries]``, such that their products stand for those of all."""
    flat = gradient.detach().flatten()
    if len(flat) <= MAX_ENTRIES:
        return flat.to(torch.float32, copy=True)  # clipping works in place
    index = torch.arange(MAX_ENTRIES, device=flat.device) * len(flat) // MAX_ENTRIES
    return flat[index].float() * (len(flat) / MAX_ENTRIES) ** 0.5


def _dot(one: Mapping[Hashable, Tensor], other: Mapping[Hashable, Tensor]) -> Tensor:
    """Sum of products, a float64 scalar: squares of small entries vanish in float32."""
    products = [one[k].double() @ other[k].double() for k in one if k in other]
    return torch.stack(products).sum()
