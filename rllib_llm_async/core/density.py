"""Where the tokens of an update lie in the plane of log r_d and log r_s, as counts."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from rllib_llm_async.core.ratios import log_ratio

#: Bounds of |log ratio| between bins, five per two decades: below the first a
#: ratio is 1 for every purpose, beyond the last it is off by more than a factor of e.
_MAGNITUDES = tuple(10.0 ** (exponent / 2.5) for exponent in range(-10, 1))
#: Bounds between the bins of log r_d and of log r_s; the outer bins are open.
RATIO_BIN_EDGES = (*(-m for m in reversed(_MAGNITUDES)), 0.0, *_MAGNITUDES)
NUM_RATIO_BINS = len(RATIO_BIN_EDGES) + 1


def ratio_density(
    logp: Tensor, old_logp: Tensor, behavior_logp: Tensor, mask: Tensor
) -> Tensor:
    """Counts agent tokens by (log r_d, log r_s), token by token.

    Args:
        logp: log pi_theta, any shape, the same for all arguments.
        old_logp: log pi_old (or a proxy).
        behavior_logp: log mu_old.
        mask: bool, true at agent tokens; those with a NaN are not counted.

    Returns:
        int64 ``[NUM_RATIO_BINS, NUM_RATIO_BINS]``, bins of log r_d by bins of log r_s.
        Counts of several batches or learners add up.
    """
    mask = mask & ~(old_logp.isnan() | behavior_logp.isnan())
    edges = _edges(logp.device)
    log_r_d = log_ratio(old_logp, behavior_logp, mask)
    log_r_s = log_ratio(logp, old_logp, mask)
    bins = torch.bucketize(log_r_d, edges, right=True) * NUM_RATIO_BINS
    bins += torch.bucketize(log_r_s, edges, right=True)
    # Not by `bincount`, which asks the device for the largest.
    counts = mask.new_zeros(NUM_RATIO_BINS**2, dtype=torch.int64)
    counts.scatter_add_(0, bins.flatten(), mask.flatten().long())
    return counts.view(NUM_RATIO_BINS, NUM_RATIO_BINS)


@cache
def _edges(device: torch.device) -> Tensor:
    """`RATIO_BIN_EDGES` there: a copy from the host waits for the device."""
    return torch.tensor(RATIO_BIN_EDGES, device=device)
