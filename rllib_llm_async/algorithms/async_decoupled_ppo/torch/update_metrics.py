"""What one update of a Learner has to tell, from its micro-batches to result keys."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.loss import MicroBatchLoss
from rllib_llm_async.batch import columns
from rllib_llm_async.core.collectives import (
    gather_from_learners,
    max_over_learners,
    sum_over_learners,
)
from rllib_llm_async.core.density import NUM_RATIO_BINS

#: Tokens older than this many versions share the last count of `STALENESS_TOKENS`.
MAX_COUNTED_STALENESS = 32
#: Sizes and the means of their weights; while micro-batches are added up, the means of
#: the weights squared stand in the place of the sizes.
_EFFECTIVE_SIZES = {
    result_keys.EFFECTIVE_SAMPLE_SIZE: result_keys.DISCREPANCY_RATIO_MEAN,
    result_keys.TOTAL_EFFECTIVE_SAMPLE_SIZE: result_keys.TOTAL_RATIO_MEAN,
}


class TokenMeans:
    """Means over tokens of metrics that come as means over micro-batches.

    They stay on their device until the end: reading one there would have the host wait
    for the micro-batch, and the device then for the host.
    """

    def __init__(self) -> None:
        self._keys: list[tuple[str, ...]] = []
        self._values: list[Tensor] = []

    def add(self, metrics: Mapping[str, Tensor], num_tokens: Tensor) -> None:
        """Adds a micro-batch's means, scalars, over ``num_tokens``.

        Those of a version lag or an entropy are means over its share of them, and a
        ``ppo_clip_fraction`` is one over what the mask keeps.
        """
        self._keys.append(tuple(metrics))
        self._values.append(torch.stack([num_tokens.float(), *metrics.values()]))

    def _sums(self) -> tuple[float, dict[str, float], dict[str, float]]:
        """Tokens, and by metric its sum over them and the weight of that sum."""
        num_tokens = 0.0
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        read = iter(torch.cat(self._values).tolist() if self._values else ())
        for keys in self._keys:
            tokens = next(read)
            num_tokens += tokens
            values = {key: next(read) for key in keys}
            for key, value in values.items():
                bucket, slash, name = key.rpartition("/")
                share = values[f"{bucket}/{result_keys.TOKEN_SHARE}"] if bucket else 1.0
                if not share:
                    continue  # no such token
                weight = tokens
                if name != result_keys.TOKEN_SHARE:
                    weight *= share
                if name == result_keys.PPO_CLIP_FRACTION:
                    weight *= values[f"{bucket}{slash}{result_keys.TRAIN_INFER_MASK}"]
                sums[key] += value * weight
                weights[key] += weight
        return num_tokens, sums, weights

    def means(self) -> dict[str, float]:
        """Means over the tokens of all learners, which have to call it together.

        A metric that saw none is left out.
        """
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        num_tokens = 0.0
        for tokens, of_sums, of_weights in gather_from_learners(self._sums()):
            num_tokens += tokens
            for key, total in of_sums.items():
                sums[key] += total
                weights[key] += of_weights[key]
        for key in weights:
            name = key.rpartition("/")[2]
            if name == result_keys.TOKEN_SHARE:  # of micro-batches without any too
                weights[key] = num_tokens
            elif name == result_keys.PPO_CLIP_FRACTION and not weights[key]:
                weights[key] = num_tokens  # nothing is kept, nothing clipped
        return {
            key: total / weights[key] for key, total in sums.items() if weights[key]
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
        metrics = dict(output.metrics)
        # No means over tokens, but they follow from two: (mean r)^2 / mean r^2.
        for size, mean in _EFFECTIVE_SIZES.items():
            metrics[size] = metrics[mean].square() / metrics[size].clamp(min=1e-30)
        self._token_means.add(metrics, num_tokens)
        self._density += output.density

    def means(self) -> dict[str, float]:
        """Means over the tokens of all learners, which have to call it together."""
        means = self._token_means.means()
        for size, mean in _EFFECTIVE_SIZES.items():
            if size in means:
                means[size] = means[mean] ** 2 / max(means[size], 1e-30)
        return means

    def density(self) -> tuple[int, ...]:
        """`RATIO_DENSITY` of all learners, which have to call it together."""
        return counts_of_all_learners(self._density)


def batch_metrics(
    batch: Mapping[str, Tensor], version: int, max_staleness: int, seconds: float
) -> dict[str, Any]:
    """What the batches of all learners looked like; they have to call it together.

    Args:
        batch: Row-packed columns.
        version: The trainer's version at the update.
        max_staleness: The bound.
        seconds: That the update took.
    """
    mask = batch[columns.LOSS_MASK]
    lags = (version - batch[columns.VERSIONS])[mask]
    tokens = batch[columns.SEQUENCE_IDS] >= 0
    sums = torch.stack([lags.sum(), mask.sum(), tokens.sum(), _replayed(batch)])
    of_lags, num_agent_tokens, num_tokens, num_replayed, places = sum_over_learners(
        torch.cat([sums, sums.new_tensor([tokens.numel()])])
    ).tolist()
    replayed = {}
    if num_replayed:
        replayed[result_keys.ROUTER_REPLAY_SHARE] = num_replayed / num_agent_tokens
    return {
        **replayed,
        result_keys.STALENESS_MEAN: of_lags / max(1, num_agent_tokens),
        result_keys.STALENESS_MAX: _largest_age(batch, version),
        result_keys.STALENESS_TOKENS: _count_staleness(lags, max_staleness),
        result_keys.POLICY_VERSION: version,
        result_keys.TRAIN_TOKENS_PER_S: num_tokens / seconds,
        result_keys.PADDING_FRACTION: 1.0 - num_tokens / places,
        result_keys.NUM_AGENT_TOKENS: num_agent_tokens,
    }


def _replayed(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of agent tokens before which the engine's experts are known."""
    if columns.ROUTED_EXPERTS not in batch:
        return torch.zeros_like(batch[columns.VERSIONS][0, 0])
    known = batch[columns.ROUTED_EXPERTS][:, :-1, 0, 0] >= 0
    return (known & batch[columns.LOSS_MASK][:, 1:]).sum()


def _largest_age(batch: Mapping[str, Tensor], version: int) -> float:
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
