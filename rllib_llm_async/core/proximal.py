"""Proxies of the old policy by interpolation between mu_old and pi_theta."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_llm_async.core.ratios import at_least_float32


def interpolate_logp(
    behavior_logp: Tensor, logp: Tensor, alpha: float | Tensor, *, space: str
) -> Tensor:
    """log pi_prox between the behaviour (alpha = 1) and the current policy (alpha = 0).

    Args:
        behavior_logp: log mu_old, any shape.
        logp: log pi_theta, same shape.
        alpha: Weight of mu_old in [0, 1], a number or a tensor of the same shape.
        space: "log" for alpha log mu + (1 - alpha) log pi, "probability" for
            log(alpha mu + (1 - alpha) pi).

    Returns:
        float32, or float64 if an argument is.

    Raises:
        ValueError: If ``space`` is neither, or alpha is outside [0, 1].
    """
    dtype = at_least_float32(behavior_logp, logp)
    behavior_logp, logp = behavior_logp.to(dtype), logp.to(dtype)
    in_range = (alpha >= 0) & (alpha <= 1)
    # Of a number the host knows it without asking the device.
    if not (in_range.all() if isinstance(in_range, Tensor) else in_range):
        raise ValueError("alpha must lie in [0, 1]")
    if not isinstance(alpha, Tensor):
        alpha = logp.new_full((), alpha)
    alpha = alpha.to(logp.device, dtype)
    if space == "log":
        return alpha * behavior_logp + (1 - alpha) * logp
    if space == "probability":
        return torch.logaddexp(alpha.log() + behavior_logp, (-alpha).log1p() + logp)
    raise ValueError(f"space must be 'log' or 'probability', got {space!r}")


def staleness_alpha(
    behavior_version: Tensor, proximal_version: int | Tensor, current_version: int
) -> Tensor:
    """A-3PO's weight of mu_old per token (arXiv 2512.06547).

    The proximal policy is taken to lie on the way from the behaviour to the current
    policy in proportion to its version:
    ``alpha = (current - proximal) / (current - behaviour)``, 0 for a token that is
    not stale.

    Args:
        behavior_version: int64 version of each token.
        proximal_version: Version that the proximal policy stands for.
        current_version: The learner's version.

    Returns:
        float32 in [0, 1], shape of ``behavior_version``.
    """
    span = (current_version - behavior_version).float()
    ahead = (current_version - torch.as_tensor(proximal_version)).float()
    alpha = ahead.to(span.device) / span.clamp(min=1.0)
    return torch.where(span > 0, alpha.clamp(0.0, 1.0), 0.0)
