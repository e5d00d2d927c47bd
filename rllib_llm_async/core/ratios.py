"""The two ratios r_d = pi_old / mu_old and r_s = pi_theta / pi_old, in log space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: |log ratio| beyond which exp adds nothing to a decision but may overflow float32.
MAX_LOG_RATIO = 20.0
RATIO_LEVELS = ("token", "turn", "sequence")


def log_ratio(
    numerator: Tensor,
    denominator: Tensor,
    mask: Tensor,
    unit_ids: Tensor | None = None,
) -> Tensor:
    """log(numerator / denominator) per token, 0 outside the mask.

    Args:
        numerator: log-probabilities, any shape.
        denominator: log-probabilities, same shape.
        mask: bool, same shape; what lies outside may be anything, NaN included.
        unit_ids: int64, same shape: the ratio is the geometric mean over the masked
            tokens that share an id. None forms it per token.

    Returns:
        float32, or float64 if an argument is; clamped to [-20, 20]. NaN at a token
        with a NaN inside the mask, and in all of its unit.
    """
    dtype = at_least_float32(numerator, denominator)
    zero = torch.zeros((), dtype=dtype, device=numerator.device)
    # where() on both sides of the subtraction: a NaN outside the mask must reach
    # neither the value nor the gradient.
    difference = torch.where(mask, numerator.to(dtype), zero) - torch.where(
        mask, denominator.to(dtype), zero
    )
    if unit_ids is not None:
        difference = _unit_mean(difference, mask, unit_ids)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _unit_mean(values: Tensor, mask: Tensor, unit_ids: Tensor) -> Tensor:
    """Replaces each masked value by the mean over its unit; the others are 0."""
    # By sorting, not by `unique`: the host need not know how many units there are.
    ids, order = torch.where(mask, unit_ids, -1).flatten().sort()
    rank = (ids.diff(prepend=ids[:1]) != 0).cumsum(0)
    unit = torch.empty_like(order).scatter_(0, order, rank)
    zeros = values.new_zeros(values.numel())
    totals = zeros.index_add(0, unit, values.flatten())
    counts = zeros.index_add(0, unit, mask.flatten().to(values.dtype))
    means = (totals / counts.clamp(min=1))[unit].view_as(values)
    return torch.where(mask, means, 0.0)


def train_infer_mask(log_r_d: Tensor, mask: Tensor, eps_ti: float) -> Tensor:
    """m_t = 1[1/eps_ti <= r_d <= eps_ti] at agent tokens, bool; false where NaN."""
    # In float64: an eps_ti of 1.0001 in float32 is off by 1 part in 6000 of its log.
    return mask & (log_r_d.abs() <= math.log(eps_ti))


def at_least_float32(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of the tensors, float32 if that is narrower."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, a scalar; 0 if it is empty."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def masked_sum(
    values: Tensor, mask: Tensor, normalizer: float | Tensor | None
) -> Tensor:
    """Sum over the mask of values / normalizer, a scalar; 0 if it is empty.

    None counts the mask. One per token may be anything outside it, 0 included.
    """
    if normalizer is None:
        normalizer = mask.sum().clamp(min=1)
    one = values.new_ones(())
    divisor = torch.where(mask, one * normalizer, one)
    return (torch.where(mask, values, 0.0) / divisor).sum()


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Size of one bool tensor over that of another; 0 if that is empty."""
    return part.sum() / whole.sum().clamp(min=1)
