"""The decoupled PPO objective (arXiv 2605.12070; clip of arXiv 1707.06347).

    J = (1/Z) sum_t m_t * sg[w_t] * min(r_s A, clip(r_s, 2 - eps_stale, eps_stale) A)

with the Train-Infer mask m_t = 1[1/eps_ti <= r_d <= eps_ti] and the importance weight
w_t = min(r_d, is_cap) of the discrepancy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async.core.ratios import RATIO_LEVELS, log_ratio, train_infer_mask

#: Version lags reported together, first and last (None: no upper end).
LAG_BUCKETS = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, None))


def decoupled_ppo_loss(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    eps_ti: float,
    eps_stale: float,
    is_cap: float | None = None,
    ratio_level: str = "token",
    unit_ids: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns -J, to be minimised, and its diagnostics.

    Args:
        logp: log pi_theta, with gradient; ``[tokens]`` or ``[batch, time]``.
        old_logp: log pi_old (or a proxy), same shape as all that follow.
        behavior_logp: log mu_old.
        advantages: A, constant in theta.
        mask: bool, true at agent tokens; anything may stand elsewhere, even NaN.
        eps_ti: Bound above 1 of r_d.
        eps_stale: Bound above 1 (and below 2) of r_s.
        is_cap: Upper bound of w; None leaves the weight out (w = 1).
        ratio_level: "token", "turn" or "sequence".
        unit_ids: int64 turn or sequence number of each token, for the latter two.
        normalizer: Z, a number or one per token (same shape as the rest); None counts
            the agent tokens before masking.

    Returns:
        A float32 scalar and detached scalar metrics: ``train_infer_mask``,
        ``ppo_clip_fraction``, ``active_fraction``, ``discrepancy_log_ratio_abs_mean``,
        ``discrepancy_kl``, ``effective_sample_size``, ``policy_loss``, ``all_masked``.

    Raises:
        ValueError: If shapes differ, a bound is out of range or units are missing.
    """
    shapes = {tuple(t.shape) for t in (logp, old_logp, behavior_logp, advantages, mask)}
    if len(shapes) != 1:
        raise ValueError(f"arguments must share one shape, got {sorted(shapes)}")
    if not eps_ti > 1 or not 1 < eps_stale < 2:
        raise ValueError(
            f"eps_ti must be above 1 and eps_stale in (1, 2), got {eps_ti=}, "
            f"{eps_stale=}"
        )
    if ratio_level not in RATIO_LEVELS:
        raise ValueError(f"ratio_level must be one of {RATIO_LEVELS}: {ratio_level!r}")
    if (ratio_level == "token") != (unit_ids is None):
        raise ValueError(
            f"unit_ids belong to ratio_level 'turn' or 'sequence', got {ratio_level!r}"
            f" {'with' if unit_ids is not None else 'without'} unit_ids"
        )

    log_r_d = log_ratio(old_logp, behavior_logp, mask, unit_ids).detach()
    log_r_s = log_ratio(logp, old_logp.detach(), mask, unit_ids)
    kept = train_infer_mask(log_r_d, mask, eps_ti)
    advantages = torch.where(mask, advantages.float(), 0.0)
    weight = log_r_d.exp().clamp(max=is_cap) if is_cap is not None else 1.0
    r_s = log_r_s.exp()
    unclipped = r_s * advantages
    clipped = r_s.clamp(2.0 - eps_stale, eps_stale) * advantages
    surrogate = torch.minimum(unclipped, clipped) * weight
    count = mask.sum()
    if normalizer is None:
        normalizer = count.clamp(min=1)
    loss = -(torch.where(kept, surrogate, 0.0) / normalizer).sum()

    with torch.no_grad():
        is_clipped = kept & (clipped < unclipped)
        metrics = {
            **_discrepancy_metrics(log_r_d, kept, mask),
            "ppo_clip_fraction": _share(is_clipped, kept),
            "active_fraction": _share(kept & ~is_clipped, mask),
            "staleness_log_ratio_abs_mean": _mean(log_r_s.abs(), mask),
            "policy_loss": -_mean(torch.where(kept, surrogate, 0.0), mask),
            "all_masked": (~kept.any()).float(),
        }
    return loss, metrics


def _discrepancy_metrics(
    log_r_d: Tensor, kept: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    r_d = torch.where(mask, log_r_d.exp(), 0.0)
    count = mask.sum().clamp(min=1)
    return {
        "train_infer_mask": _share(kept, mask),
        "discrepancy_log_ratio_abs_mean": _mean(log_r_d.abs(), mask),
        # KL(mu || pi) by the estimator r - 1 - log r, which is never negative.
        "discrepancy_kl": _mean(r_d - 1.0 - log_r_d, mask),
        "effective_sample_size": r_d.sum().square()
        / (r_d.square().sum() * count).clamp(min=1e-30),
    }


def kl_penalty(
    logp: Tensor,
    reference_logp: Tensor,
    mask: Tensor,
    *,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(pi_theta || pi_ref) by the estimator r - 1 - log r with r = pi_ref / pi_theta.

    It is never negative and unbiased for tokens drawn from pi_theta
    (http://joschu.net/blog/kl-approx.html, k3).

    Args:
        logp: log pi_theta, with gradient.
        reference_logp: log pi_ref, same shape.
        mask: bool, true at agent tokens.
        normalizer: As in `decoupled_ppo_loss`.

    Returns:
        The penalty, a float32 scalar, and its detached mean over tokens.
    """
    log_r = log_ratio(reference_logp.detach(), logp, mask, None)
    per_token = log_r.exp() - 1.0 - log_r
    if normalizer is None:
        normalizer = mask.sum().clamp(min=1)
    penalty = (torch.where(mask, per_token, 0.0) / normalizer).sum()
    return penalty, _mean(per_token.detach(), mask)


def ratio_metrics_by_lag(
    logp: Tensor,
    old_logp: Tensor,
    behavior_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    lags: Tensor,
    eps_ti: float,
    eps_stale: float,
) -> dict[str, Tensor]:
    """Metrics of the two token ratios, for each version lag apart.

    Args:
        lags: int64, learner's version minus the token's; the rest as in
            `decoupled_ppo_loss`.

    Returns:
        ``{"lag_3_4/train_infer_mask": ...}`` and so on, for the lags that occur.
    """
    metrics = {}
    for first, last in LAG_BUCKETS:
        inside = mask & (lags >= first)
        if last is not None:
            inside &= lags <= last
        if not inside.any():
            continue
        _, of_bucket = decoupled_ppo_loss(
            logp,
            old_logp,
            behavior_logp,
            advantages,
            inside,
            eps_ti=eps_ti,
            eps_stale=eps_stale,
        )
        name = f"lag_{lag_name((first, last))}"
        for key in (
            "train_infer_mask",
            "ppo_clip_fraction",
            "discrepancy_log_ratio_abs_mean",
            "staleness_log_ratio_abs_mean",
        ):
            metrics[f"{name}/{key}"] = of_bucket[key]
        metrics[f"{name}/token_share"] = _share(inside, mask)
    return metrics


def lag_name(bucket: tuple[int, int | None]) -> str:
    """One of `LAG_BUCKETS` as it stands in result keys: "1", "3_4", "9_plus"."""
    first, last = bucket
    if last is None:
        return f"{first}_plus"
    return f"{first}" if first == last else f"{first}_{last}"


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return part.sum() / whole.sum().clamp(min=1)
