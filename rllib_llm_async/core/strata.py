"""Metrics of the two ratios for tokens of one version lag, or of one entropy, alone:
a mean over all tokens hides what they show."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.objective import decoupled_ppo_loss
from rllib_llm_async.core.ratios import share

#: Version lags reported together, first and last (None: no upper end).
LAG_BUCKETS = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, None))
#: Entropies in nats reported together, from the first to below the second.
ENTROPY_BUCKETS = ((0.0, 0.01), (0.01, 0.1), (0.1, 1.0), (1.0, math.inf))
_REPORTED = (
    result_keys.TRAIN_INFER_MASK,
    result_keys.PPO_CLIP_FRACTION,
    result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN,
    result_keys.STALENESS_LOG_RATIO_ABS_MEAN,
    result_keys.DISCREPANCY_LOG_RATIO_SQUARE_MEAN,
    result_keys.STALENESS_LOG_RATIO_SQUARE_MEAN,
)


def ratio_metrics_by_lag(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    lags: Tensor,
    max_lag: int | None = None,
    **bounds: Any,
) -> dict[str, Tensor]:
    """Metrics of the two token ratios, for each version lag apart.

    Args:
        logp: As all that follow, see `decoupled_ppo_loss`.
        old_logp: log pi_old.
        behavior_logp: log mu_old.
        advantages: A.
        mask: bool, true at agent tokens.
        lags: int64, learner's version minus the token's.
        max_lag: None of the lags is larger; buckets beyond it are left out.
        **bounds: ``eps_ti``, ``eps_stale`` and so on.

    Returns:
        ``{"lag_3_4/train_infer_mask": ...}`` and so on; all are 0 for lags that do not
        occur, the ``token_share`` too.
    """
    arguments = (logp, old_logp, behavior_logp, advantages, mask)
    metrics: dict[str, Tensor] = {}
    for first, last in LAG_BUCKETS:
        if max_lag is not None and first > max_lag:
            break
        inside = lags >= first
        if last is not None:
            inside &= lags <= last
        of_bucket = _metrics_inside(*arguments, inside=inside, **bounds)
        lag = lag_name((first, last))
        metrics |= {result_keys.at_lag(lag, key): of_bucket[key] for key in of_bucket}
    return metrics


def ratio_metrics_by_entropy(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    entropy: Tensor,
    **bounds: Any,
) -> dict[str, Tensor]:
    """Metrics of the two token ratios, for tokens of similar entropy apart.

    Args:
        logp: As all that follow up to ``mask``, see `ratio_metrics_by_lag`.
        old_logp: log pi_old.
        behavior_logp: log mu_old.
        advantages: A.
        mask: bool, true at agent tokens.
        entropy: Of pi_theta at each token, in nats, same shape.
        **bounds: ``eps_ti``, ``eps_stale`` and so on.

    Returns:
        ``{"entropy_1e-2/train_infer_mask": ...}`` and so on; all are 0 where no token
        has such an entropy, the ``token_share`` too.
    """
    arguments = (logp, old_logp, behavior_logp, advantages, mask)
    entropy = entropy.clamp(min=0.0)  # rounding may put that of a certain token below
    metrics: dict[str, Tensor] = {}
    for low, high in ENTROPY_BUCKETS:
        inside = (entropy >= low) & (entropy < high)
        of_bucket = _metrics_inside(*arguments, inside=inside, **bounds)
        name = entropy_name((low, high))
        metrics |= {
            result_keys.at_entropy(name, key): of_bucket[key] for key in of_bucket
        }
    return metrics


def _metrics_inside(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    inside: Tensor,
    **bounds: Any,
) -> dict[str, Tensor]:
    _, metrics = decoupled_ppo_loss(
        logp, old_logp, behavior_logp, advantages, mask & inside, **bounds
    )
    reported = {key: metrics[key] for key in _REPORTED}
    return reported | {result_keys.TOKEN_SHARE: share(mask & inside, mask)}


def lag_name(bucket: tuple[int, int | None]) -> str:
    """One of `LAG_BUCKETS` as it stands in result keys: "1", "3_4", "9_plus"."""
    first, last = bucket
    if last is None:
        return f"{first}_plus"
    return f"{first}" if first == last else f"{first}_{last}"


def entropy_name(bucket: tuple[float, float]) -> str:
    """One of `ENTROPY_BUCKETS` as it stands in result keys: "0", "1e-2", "1"."""
    return f"{bucket[0]:.0e}".replace("e-0", "e-").removesuffix("e+00")
