"""The penalty that holds the policy near a reference, by estimators from samples."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async.core.ratios import log_ratio, masked_mean, masked_sum


def kl_penalty(
    logp: Tensor,
    reference_logp: Tensor,
    mask: Tensor,
    *,
    behavior_logp: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """KL(pi_theta || pi_ref) from sampled tokens, with r = pi_ref / pi_theta.

    Without ``behavior_logp`` each token gives k3 = r - 1 - log r: never negative, and
    for tokens drawn from pi_theta an unbiased value of the divergence
    (http://joschu.net/blog/kl-approx.html). Its gradient is another one's: it is
    (1 - r) grad log pi_theta, whose mean over pi_theta is the gradient of
    KL(pi_ref || pi_theta), the other direction.

    With ``behavior_logp`` each token gives (pi_theta / mu_old) k3, and the weight
    carries gradient as well. For tokens drawn from mu_old value and gradient are then
    those of KL(pi_theta || pi_ref) without bias, at the price of more variance.

    Args:
        logp: log pi_theta, with gradient, any shape.
        reference_logp: log pi_ref, same shape.
        mask: bool, true at agent tokens.
        behavior_logp: log mu_old, same shape, for the unbiased estimator.
        normalizer: As in `decoupled_ppo_loss`.

    Returns:
        The penalty, a scalar, and its detached mean over tokens.
    """
    log_r = log_ratio(reference_logp.detach(), logp, mask)
    per_token = log_r.exp() - 1.0 - log_r
    if behavior_logp is not None:
        finite = mask & behavior_logp.isfinite()
        weight = log_ratio(logp, behavior_logp.detach(), finite).exp()
        per_token = torch.where(finite, weight * per_token, 0.0)
    penalty = masked_sum(per_token, mask, normalizer)
    return penalty, masked_mean(per_token.detach(), mask)
