"""A batch of episodes to optimizer steps: the shares and their normaliser."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import spans_up_to, take
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
    """Yields shares of the episodes, ``num_per_epoch`` for each epoch.

    They are alike in number of episodes and of tokens, see `deal`, and packed into rows
    of their own. Episodes without an agent token to train on are left out. The number
    of shares does not depend on the episodes, so that all learners take as many steps.

    Args:
        batch: Row-packed columns ``[rows, length]``.
        num_epochs: Passes over the episodes.
        num_per_epoch: Shares in each.
        shuffle_seed: Each epoch draws its own shares from this; None deals out the
            same ones each time.
    """
    mask = batch[columns.LOSS_MASK]
    spans = spans_up_to(batch, mask)
    for epoch in range(num_epochs):
        rng = None
        if shuffle_seed is not None:
            rng = np.random.default_rng((*shuffle_seed, epoch))
        for share in deal(spans.lengths, num_per_epoch, rng):
            # One without an episode is a row of padding: other learners may have some.
            index = spans[share].pack(mask.shape[1])
            yield take(batch, torch.from_numpy(index).to(mask.device))


def deal(
    lengths: np.ndarray, num_shares: int, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Deals sequences out: to each share one of the longest, one of the next, ...

    Their numbers differ by at most one, and their tokens by at most those of the
    longest sequence: what is between two shares in one round they can lose in the
    next, where all are shorter.

    Args:
        lengths: int64 ``[sequences]``.
        num_shares: At least one.
        rng: Who gets which in a round is drawn from it; None lets the order of the
            shares alternate.

    Returns:
        Indices of the sequences of each share, int64.
    """
    order = np.argsort(-lengths, kind="stable")
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    for number, start in enumerate(range(0, len(order), num_shares)):
        turns = np.arange(num_shares)[:: -1 if number % 2 else 1]
        if rng is not None:
            turns = rng.permutation(num_shares)
        for share, sequence in zip(turns, order[start : start + num_shares]):
            shares[share].append(sequence)
    return [np.array(share, np.int64) for share in shares]


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
