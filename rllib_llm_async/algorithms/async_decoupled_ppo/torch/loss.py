"""The Learner's loss on one micro-batch, and the figures that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.core import (
    decoupled_ppo_loss,
    kept_tokens,
    kl_penalty,
    ratio_density,
    ratio_metrics_by_entropy,
    ratio_metrics_by_lag,
)
from rllib_llm_async.models.hf_causal_lm import ENTROPY


class MicroBatchLoss(NamedTuple):
    """A sum over agent tokens, detached means over them, and counts of both ratios.

    ``density`` is what `ratio_density` gives, ``kept`` the tokens that the Train-Infer
    mask keeps, bool ``[rows, length]``.
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    density: Tensor
    kept: Tensor


def micro_batch_loss(
    batch: Mapping[str, Tensor],
    fwd_out: Mapping[str, Tensor],
    old_logp: Tensor,
    *,
    config: Any,
    version: int,
) -> MicroBatchLoss:
    """Computes what one micro-batch adds to the loss of an optimizer step.

    Args:
        batch: Row-packed columns, `LOSS_DIVISOR` among them.
        fwd_out: Of `HFCausalLM.forward_train`, with gradient.
        old_logp: log pi_old, ``[rows, length]``.
        config: An `AsyncDecoupledPPOConfig`.
        version: The trainer's current version.
    """
    logp, mask = fwd_out[Columns.ACTION_LOGP], batch[columns.LOSS_MASK]
    divisor = batch[columns.LOSS_DIVISOR]
    ratio_inputs = (
        old_logp,
        batch[columns.BEHAVIOR_LOGP],
        batch[columns.ADVANTAGES],
        mask,
    )
    bounds = {
        key: getattr(config, key)
        for key in (
            "eps_ti",
            "eps_stale",
            "eps_stale_low",
            "dual_clip",
            "is_cap",
            "discrepancy_weight",
        )
    }
    mask_level = config.mask_level or config.ratio_level
    mask_units = _unit_ids(batch, mask_level)
    loss, metrics = decoupled_ppo_loss(
        logp,
        *ratio_inputs,
        **bounds,
        ratio_level=config.ratio_level,
        unit_ids=_unit_ids(batch, config.ratio_level),
        mask_level=mask_level,
        mask_unit_ids=mask_units,
        normalizer=divisor,
    )
    lags = version - batch[columns.VERSIONS]
    metrics |= ratio_metrics_by_lag(
        logp.detach(), *ratio_inputs, lags=lags, max_lag=config.max_staleness, **bounds
    )
    entropy = fwd_out[ENTROPY].detach()
    metrics |= ratio_metrics_by_entropy(
        logp.detach(), *ratio_inputs, entropy=entropy, **bounds
    )
    metrics[ENTROPY] = entropy.sum() / mask.sum().clamp(min=1)
    if columns.REFERENCE_LOGP in batch:
        penalty, metrics[result_keys.KL_TO_REFERENCE] = kl_penalty(
            logp,
            batch[columns.REFERENCE_LOGP],
            mask,
            behavior_logp=batch[columns.BEHAVIOR_LOGP]
            if config.kl_estimator == "unbiased"
            else None,
            normalizer=divisor,
        )
        loss = loss + config.kl_coeff * penalty
    if Columns.VF_PREDS in fwd_out:
        value_loss, metrics[result_keys.VF_LOSS] = _value_loss(
            batch, fwd_out[Columns.VF_PREDS]
        )
        loss = loss + config.vf_loss_coeff * value_loss
    density = ratio_density(
        logp.detach(), old_logp.detach(), batch[columns.BEHAVIOR_LOGP], mask
    )
    kept = kept_tokens(
        old_logp,
        batch[columns.BEHAVIOR_LOGP],
        mask,
        eps_ti=config.eps_ti,
        unit_ids=mask_units,
    )
    return MicroBatchLoss(loss, metrics, density, kept)


def _unit_ids(batch: Mapping[str, Tensor], level: str) -> Tensor | None:
    column = columns.UNIT_IDS[level]
    return None if column is None else batch[column]


def _value_loss(batch: Mapping[str, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared error: a sum over turns, each with its tokens' weight, and the
    mean of it."""
    weights = batch[columns.VALUE_WEIGHTS] * batch[columns.LOSS_MASK]
    halves = weights * (values - batch[columns.VALUE_TARGETS]).square() / 2
    mean = halves.detach().sum() / weights.sum().clamp(min=1)
    return (halves / batch[columns.LOSS_DIVISOR]).sum(), mean
