"""The decoupled PPO objective (arXiv 2605.12070; clip of arXiv 1707.06347).

    J = (1/Z) sum_t m_t * sg[w_t] * min(r_s A, clip(r_s, 2 - eps_low, eps_stale) A)

with the Train-Infer mask m_t = 1[1/eps_ti <= r_d <= eps_ti] and the importance weight
w_t = min(r_d, is_cap) of the discrepancy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.ratios import (
    MAX_LOG_RATIO,
    RATIO_LEVELS,
    at_least_float32,
    log_ratio,
    masked_mean,
    masked_sum,
    share,
    train_infer_mask,
)

DISCREPANCY_WEIGHTS = ("ratio", "none")


def decoupled_ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_ti: float,
    eps_stale: float,
    eps_stale_low: float | None = None,
    dual_clip: float | None = None,
    is_cap: float | None = None,
    discrepancy_weight: str = "ratio",
    ratio_level: str = "token",
    unit_ids: Tensor | None = None,
    mask_level: str | None = None,
    mask_unit_ids: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns -J, to be minimised, and its diagnostics.

    Args:
        logp: log pi_theta, with gradient; ``[tokens]`` or ``[batch, time]``.
        old_logp: log pi_old (or a proxy), same shape as all that follow.
        behavior_logp: log mu_old. A token at which it or ``old_logp`` is not finite
            is masked.
        advantages: A, constant in theta.
        mask: bool, true at agent tokens; anything may stand elsewhere, even NaN.
        eps_ti: Bound above 1 of r_d.
        eps_stale: Bound above 1 of r_s.
        eps_stale_low: The lower end of the clip is 2 minus it, in (1, 2); None takes
            ``eps_stale``.
        dual_clip: Bound c above 1 for negative advantages, whose surrogate is then at
            least c A (arXiv 1912.09729, eq. 5); None leaves it out.
        is_cap: Upper bound of w; None sets none.
        discrepancy_weight: "ratio" for w as above, "none" for w = 1.
        ratio_level: "token", "turn" or "sequence", for w and r_s.
        unit_ids: int64 turn or sequence number of each token, for the latter two.
        mask_level: The same for the r_d of the mask; None takes ``ratio_level``.
        mask_unit_ids: As ``unit_ids``, for a ``mask_level`` of its own.
        normalizer: Z, a number or one per token (same shape as the rest); None counts
            the agent tokens before masking.

    Returns:
        A scalar and detached scalar metrics, float32 (float64 if an argument is):
        ``train_infer_mask``, ``ppo_clip_fraction``, ``active_fraction``,
        ``discrepancy_log_ratio_abs_mean``, ``discrepancy_ratio_mean`` (of r_d; 1 where
        mu_old is what sampled), ``discrepancy_kl``,
        ``effective_sample_size``, ``staleness_log_ratio_abs_mean``, ``policy_loss``,
        ``all_masked``.

    Raises:
        ValueError: If shapes differ, a bound is out of range or units are missing.
    """
    shapes = {tuple(t.shape) for t in (logp, old_logp, behavior_logp, advantages, mask)}
    if len(shapes) != 1:
        raise ValueError(f"arguments must share one shape, got {sorted(shapes)}")
    low = 2.0 - (eps_stale if eps_stale_low is None else eps_stale_low)
    _check_bounds(eps_ti, eps_stale, low, dual_clip, is_cap, discrepancy_weight)
    _check_level("ratio_level", ratio_level, unit_ids)
    if mask_level is None:
        mask_level, mask_unit_ids = ratio_level, unit_ids
    _check_level("mask_level", mask_level, mask_unit_ids)

    old_logp, behavior_logp = old_logp.detach(), behavior_logp.detach()
    finite = mask & old_logp.isfinite() & behavior_logp.isfinite()
    kept = kept_tokens(
        old_logp, behavior_logp, mask, eps_ti=eps_ti, unit_ids=mask_unit_ids
    )
    log_r_d = log_ratio(old_logp, behavior_logp, finite, unit_ids)
    log_r_s = log_ratio(logp, old_logp, finite, unit_ids)
    dtype = at_least_float32(log_r_d, log_r_s, advantages)
    advantages = torch.where(finite, advantages.to(dtype), 0.0)

    r_s = log_r_s.exp()
    unclipped = r_s * advantages
    surrogate = torch.minimum(unclipped, r_s.clamp(low, eps_stale) * advantages)
    if dual_clip is not None:
        floor = dual_clip * advantages
        surrogate = torch.where(advantages < 0, surrogate.maximum(floor), surrogate)
    is_clipped = kept & (surrogate != unclipped)
    if discrepancy_weight == "ratio":
        weight = log_r_d.exp()
        surrogate = surrogate * (weight if is_cap is None else weight.clamp(max=is_cap))
    surrogate = torch.where(kept, surrogate, 0.0)
    loss = -masked_sum(surrogate, mask, normalizer)

    with torch.no_grad():
        metrics = {
            **_discrepancy_metrics(log_r_d, finite),
            result_keys.TRAIN_INFER_MASK: share(kept, mask),
            result_keys.PPO_CLIP_FRACTION: share(is_clipped, kept),
            result_keys.ACTIVE_FRACTION: share(kept & ~is_clipped, mask),
            **_staleness_metrics(log_r_d, log_r_s, finite),
            result_keys.POLICY_LOSS: -masked_mean(surrogate, mask),
            result_keys.ALL_MASKED: (~kept.any()).float(),
        }
    return loss, metrics


def kept_tokens(
    old_logp: Tensor,
    behavior_logp: Tensor,
    mask: Tensor,
    *,
    eps_ti: float,
    unit_ids: Tensor | None = None,
) -> Tensor:
    """Agent tokens with m_t = 1, bool, same shape; arguments as above.

    ``unit_ids`` are those of the mask's level.
    """
    log_r_d = log_ratio(old_logp, behavior_logp, mask, unit_ids)
    finite = old_logp.isfinite() & behavior_logp.isfinite()
    return train_infer_mask(log_r_d, mask, eps_ti) & finite


def _check_bounds(
    eps_ti: float,
    eps_stale: float,
    low: float,
    dual_clip: float | None,
    is_cap: float | None,
    discrepancy_weight: str,
) -> None:
    if not eps_ti > 1 or not eps_stale > 1 or not 0 < low < 1:
        raise ValueError(
            f"eps_ti must be above 1, eps_stale as well, and eps_stale_low (eps_stale "
            f"where it is not given) in (1, 2), got {eps_ti=}, {eps_stale=}, "
            f"eps_stale_low={2.0 - low}"
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be above 1 or None, got {dual_clip}")
    if is_cap is not None and not is_cap > 0:
        raise ValueError(f"is_cap must be above 0 or None, got {is_cap}")
    if discrepancy_weight not in DISCREPANCY_WEIGHTS:
        raise ValueError(
            f"discrepancy_weight must be one of {DISCREPANCY_WEIGHTS}, got "
            f"{discrepancy_weight!r}"
        )


def _check_level(name: str, level: str, unit_ids: Tensor | None) -> None:
    if level not in RATIO_LEVELS:
        raise ValueError(f"{name} must be one of {RATIO_LEVELS}: {level!r}")
    if (level == "token") != (unit_ids is None):
        raise ValueError(
            f"unit_ids belong to {name} 'turn' or 'sequence', got {level!r}"
            f" {'with' if unit_ids is not None else 'without'} unit_ids"
        )


def _discrepancy_metrics(log_r_d: Tensor, mask: Tensor) -> dict[str, Tensor]:
    r_d = torch.where(mask, log_r_d.exp(), 0.0)
    return {
        result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN: masked_mean(log_r_d.abs(), mask),
        result_keys.DISCREPANCY_LOG_RATIO_SQUARE_MEAN: masked_mean(
            log_r_d.square(), mask
        ),
        result_keys.DISCREPANCY_RATIO_MEAN: masked_mean(r_d, mask),
        # KL(mu || pi) by the estimator r - 1 - log r, which is never negative.
        result_keys.DISCREPANCY_KL: masked_mean(r_d - 1.0 - log_r_d, mask),
        result_keys.EFFECTIVE_SAMPLE_SIZE: _effective_sample_size(r_d, mask),
    }


def _staleness_metrics(
    log_r_d: Tensor, log_r_s: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    # Each is clamped; squares of what both together may be overflow float32.
    total = torch.where(mask, (log_r_d + log_r_s).clamp(max=MAX_LOG_RATIO).exp(), 0.0)
    return {
        result_keys.STALENESS_LOG_RATIO_ABS_MEAN: masked_mean(log_r_s.abs(), mask),
        result_keys.STALENESS_LOG_RATIO_SQUARE_MEAN: masked_mean(
            log_r_s.square(), mask
        ),
        result_keys.TOTAL_RATIO_MEAN: masked_mean(total, mask),
        result_keys.TOTAL_EFFECTIVE_SAMPLE_SIZE: _effective_sample_size(total, mask),
    }


def _effective_sample_size(weights: Tensor, mask: Tensor) -> Tensor:
    """(sum w)^2 / (n sum w^2), of weights that are 0 outside the mask."""
    return weights.sum().square() / (weights.square().sum() * mask.sum()).clamp(
        min=1e-30
    )
