"""A batch of rows to optimizer steps: the shares and their normaliser."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.core.collectives import max_over_learners, sum_over_learners

#: Advantages that deviate less are not blown up any further.
MIN_DEVIATION = 1e-4


class Step(enum.Enum):
    """What became of an optimizer step; alike on all learners."""

    TAKEN = "taken"
    #: The gradient is exactly zero, or no learner has a token: momentum and weight
    #: decay would move the weights all the same.
    WITHOUT_SIGNAL = "without_signal"
    NOT_FINITE = "not_finite"


def step_with(gradients: Iterable[Tensor]) -> Step:
    """What a step with these gradients would be, alike on all learners.

    Args:
        gradients: At least one; whole, or this learner's shares of them. All learners
            have to call it together.
    """
    gradients = list(gradients)
    norms = torch._foreach_norm(
        [g for g in gradients if g.numel()] or [gradients[0].new_zeros(1)],
        ord=float("inf"),
    )
    largest = torch.stack([norm.float() for norm in norms]).max()
    # The maximum of a NaN and a number is not the same everywhere.
    largest = max_over_learners(largest.nan_to_num(nan=torch.inf, posinf=torch.inf))
    if not largest.isfinite():
        return Step.NOT_FINITE
    return Step.TAKEN if largest else Step.WITHOUT_SIGNAL


def minibatches(
    batch: Mapping[str, Tensor],
    *,
    num_epochs: int,
    num_per_epoch: int,
    shuffle_seed: tuple[int, ...] | None,
) -> Iterator[dict[str, Tensor]]:
    """Yields even shares of the rows, ``num_per_epoch`` for each epoch.

    The number does not depend on the rows, so that all learners take as many steps.

    Args:
        batch: Row-packed columns ``[rows, length]``.
        num_epochs: Passes over the rows.
        num_per_epoch: Shares in each.
        shuffle_seed: Each epoch draws its own order from this; None keeps the rows'.
    """
    rows = len(batch[columns.TOKENS])
    for epoch in range(num_epochs):
        order = torch.arange(rows)
        if shuffle_seed is not None:
            rng = np.random.default_rng((*shuffle_seed, epoch))
            order = torch.from_numpy(rng.permutation(rows))
        for share in torch.tensor_split(order, num_per_epoch):
            # Other learners may have tokens where this one has no row left.
            chosen = share if len(share) else order[:1]
            minibatch = {key: column[chosen] for key, column in batch.items()}
            if not len(share):
                minibatch[columns.LOSS_MASK].zero_()
            yield minibatch


def standardise_turns(batch: dict[str, Tensor]) -> None:
    """Shifts and scales advantages to mean 0 and deviation 1 over the turns trained on.

    Those of all learners together, which have to call it together. Where all are the
    same they become exact zeros: the rounding of a mean is no signal.

    Args:
        batch: Row-packed columns, with those of `TurnAdvantages`; changed.
    """
    mask, advantages = batch[columns.LOSS_MASK], batch[columns.ADVANTAGES].double()
    of_turns = advantages[mask & (batch[columns.VALUE_WEIGHTS] > 0)]
    ends = of_turns.new_full((2,), -torch.inf)
    if len(of_turns):
        ends = torch.stack([of_turns.max(), -of_turns.min()])
    highest, lowest = max_over_learners(ends)
    count, total = sum_over_learners(
        torch.stack([of_turns.new_tensor(len(of_turns)), of_turns.sum()])
    )
    mean = total / count.clamp(min=1)
    squares = sum_over_learners((of_turns - mean).square().sum())
    deviation = (squares / count.clamp(min=1)).sqrt().clamp(min=MIN_DEVIATION)
    standardised = torch.where(
        mask & (highest != -lowest), (advantages - mean) / deviation, 0.0
    )
    batch[columns.ADVANTAGES] = standardised.float()


def loss_divisor(
    minibatch: Mapping[str, Tensor], normalizer: str
) -> tuple[Tensor, Tensor]:
    """What each token's loss is divided by, and what their sum then is.

    Args:
        minibatch: Row-packed columns ``[rows, length]``.
        normalizer: "tokens", "sequences" or "episodes", see ``loss_normalizer``.

    Returns:
        float32 ``[rows, length]`` and an int64 scalar: agent tokens, or sequences.
    """
    mask, sequences = minibatch[columns.LOSS_MASK], minibatch[columns.SEQUENCE_IDS]
    divisor = torch.ones_like(mask, dtype=torch.float32)
    if normalizer == "tokens":
        return divisor, mask.sum()
    lengths = torch.bincount(sequences[mask])
    if normalizer == "sequences":
        divisor[mask] = lengths[sequences[mask]].float()
    return divisor, (lengths > 0).sum()
