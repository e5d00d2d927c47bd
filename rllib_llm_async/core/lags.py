"""Metrics of the two ratios by version lag: a mean over lags hides what they show."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.objective import decoupled_ppo_loss
from rllib_llm_async.core.ratios import share

#: Version lags reported together, first and last (None: no upper end).
LAG_BUCKETS = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, None))
_REPORTED = (
    result_keys.TRAIN_INFER_MASK,
    result_keys.PPO_CLIP_FRACTION,
    result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN,
    result_keys.STALENESS_LOG_RATIO_ABS_MEAN,
    result_keys.DISCREPANCY_LOG_RATIO_SQUARE_MEAN,
    result_keys.STALENESS_LOG_RATIO_SQUARE_MEAN,
    result_keys.TOKEN_SHARE,
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
    metrics: dict[str, Tensor] = {}
    for first, last in LAG_BUCKETS:
        if max_lag is not None and first > max_lag:
            break
        inside = mask & (lags >= first)
        if last is not None:
            inside &= lags <= last
        _, of_bucket = decoupled_ppo_loss(
            logp, old_logp, behavior_logp, advantages, inside, **bounds
        )
        of_bucket[result_keys.TOKEN_SHARE] = share(inside, mask)
        lag = lag_name((first, last))
        metrics |= {result_keys.at_lag(lag, key): of_bucket[key] for key in _REPORTED}
    return metrics


def lag_name(bucket: tuple[int, int | None]) -> str:
    """One of `LAG_BUCKETS` as it stands in result keys: "1", "3_4", "9_plus"."""
    first, last = bucket
    if last is None:
        return f"{first}_plus"
    return f"{first}" if first == last else f"{first}_{last}"
