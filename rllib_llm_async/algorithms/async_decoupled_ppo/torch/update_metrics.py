"""What one update of a Learner has to tell, from its micro-batches to result keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async import columns, result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.loss import MicroBatchLoss
from rllib_llm_async.core.collectives import max_over_learners, sum_over_learners
from rllib_llm_async.core.density import NUM_RATIO_BINS

#: Tokens older than this many versions share the last count of `STALENESS_TOKENS`.
MAX_COUNTED_STALENESS = 32


class TokenMeans:
    """Means over tokens of metrics that come as means over micro-batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, metrics: Mapping[str, Tensor], num_tokens: Tensor) -> None:
        """Adds a micro-batch's means, scalars, over ``num_tokens``."""
        weight = float(num_tokens)
        for key, value in metrics.items():
            self._sums[key] += float(value) * weight
            self._weights[key] += weight

    def means(self) -> dict[str, float]:
        """Means over all tokens; a metric that saw none is left out."""
        return {
            key: total / self._weights[key]
            for key, total in self._sums.items()
            if self._weights[key]
        }


class UpdateMetrics:
    """Collects an update's micro-batches.

    Args:
        device: Of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self._token_means = TokenMeans()
        self._density = torch.zeros(
            (NUM_RATIO_BINS, NUM_RATIO_BINS), dtype=torch.int64, device=device
        )

    def add(self, output: MicroBatchLoss, num_tokens: Tensor) -> None:
        """Takes in a micro-batch with ``num_tokens`` agent tokens."""
        self._token_means.add(output.metrics, num_tokens)
        self._density += output.density

    def means(self) -> dict[str, float]:
        """Means over this learner's tokens."""
        return self._token_means.means()

    def density(self) -> tuple[int, ...]:
        """`RATIO_DENSITY` of all learners, which have to call it together."""
        return counts_of_all_learners(self._density)


def batch_metrics(
    batch: Mapping[str, Tensor], version: int, max_staleness: int, seconds: float
) -> dict[str, Any]:
    """What the batch of an update looked like; all learners have to call it together.

    Args:
        batch: Row-packed columns.
        version: The trainer's version at the update.
        max_staleness: The bound.
        seconds: That the update took.
    """
    mask = batch[columns.LOSS_MASK]
    lags = (version - batch[columns.VERSIONS])[mask]
    tokens = batch[columns.SEQUENCE_IDS] >= 0
    return {
        result_keys.STALENESS_MEAN: float(lags.float().mean()) if len(lags) else 0.0,
        result_keys.STALENESS_MAX: float(lags.max()) if len(lags) else 0.0,
        result_keys.STALENESS_TOKENS: _count_staleness(lags, max_staleness),
        result_keys.POLICY_VERSION: version,
        result_keys.TRAIN_TOKENS_PER_S: float(tokens.sum()) / seconds,
        result_keys.PADDING_FRACTION: 1.0 - float(tokens.float().mean()),
        result_keys.NUM_AGENT_TOKENS: float(mask.sum()),
    }


def staleness_width(batch: Mapping[str, Tensor], version: int) -> float:
    """Largest age in versions of a token of any learner's batch."""
    ages = (version - batch[columns.VERSIONS]) * batch[columns.LOSS_MASK]
    return float(max_over_learners(ages.max().float()))


def _count_staleness(lags: Tensor, max_staleness: int) -> tuple[int, ...]:
    last = min(max_staleness, MAX_COUNTED_STALENESS)
    return counts_of_all_learners(
        torch.bincount(lags.clamp(0, last), minlength=last + 1)
    )


def counts_of_all_learners(counts: Tensor) -> tuple[int, ...]:
    """A tuple, since loggers plot lists as histograms."""
    return tuple(sum_over_learners(counts).flatten().tolist())
