"""Says in words when the numbers of a run do not mean what one would think.

One sentence per situation: what is the case, and what to change. Nothing here changes
a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rllib_llm_async.core.objective import LAG_BUCKETS, lag_name
from rllib_llm_async.old_logprobs import EWMAProx, InterpolatedSource, source_class

#: At a lag, |log r_d| this many times that of fresh tokens is staleness, not numerics.
HIDDEN_STALENESS_RATIO = 3.0
#: ... if the mask also drops this much more there.
HIDDEN_STALENESS_MASK_LOSS = 0.02
#: With an exact source the mask should keep nearly everything.
MIN_EXACT_MASK_SHARE = 0.9


def config_warnings(config: Any) -> Iterator[str]:
    """What can be told from an `AsyncDecoupledPPOConfig` alone."""
    name = config.old_logprob_source
    source = source_class(name)
    is_interpolated = issubclass(source, InterpolatedSource)
    share = (config.minibatch_size or config.episodes_per_update) * max(
        1, config.num_learners
    )
    one_step = config.num_epochs == 1 and share >= config.episodes_per_update
    if name == "current_recompute" and one_step:
        yield (
            "r_s is 1 for every token and the clip never acts: pi_old is recomputed "
            "under the weights of the only optimizer step; set minibatch_size below "
            "episodes_per_update, or choose another old_logprob_source"
        )
    if is_interpolated and config.prox_alpha == 0:
        yield (
            f"{name} with prox_alpha 0 makes r_s 1 for every token: the clip never "
            "acts; set prox_alpha above 0"
        )
    if name == "rollout" or (is_interpolated and config.prox_alpha == 1):
        yield (
            f"with {name} pi_old is mu_old: r_d is 1, neither eps_ti nor is_cap does "
            "anything, and the clip bounds discrepancy and staleness together; choose "
            "another old_logprob_source to tell them apart"
        )
    if issubclass(source, EWMAProx) and config.max_staleness == 0:
        yield (
            f"{name} with max_staleness 0 lags behind tokens that are never stale; "
            "choose current_recompute"
        )
    if not isinstance(config.ewma_decay, str) and not issubclass(source, EWMAProx):
        yield f"ewma_decay does nothing with old_logprob_source {name}; leave it out"
    if config.old_logit_model and not config.needs_old_logit_actors:
        yield (
            f"old_logit_model does nothing with old_logprob_source {name}; leave it out"
        )


def result_warnings(config: Any, results: Mapping[str, float]) -> Iterator[str]:
    """What one update's learner results tell."""
    if source_class(config.old_logprob_source).is_exact:
        share = results.get("train_infer_mask", 1.0)
        if share < MIN_EXACT_MASK_SHARE:
            yield (
                f"engine and trainer disagree under the same weights: the mask keeps "
                f"{share:.0%} of tokens although pi_old is exact; compare engine.dtype "
                "with compute_dtype, or set eps_ti higher"
            )
        return
    fresh = results.get("lag_0/discrepancy_log_ratio_abs_mean")
    if fresh is None:
        return
    for bucket in LAG_BUCKETS[1:]:
        lag = lag_name(bucket)
        stale = results.get(f"lag_{lag}/discrepancy_log_ratio_abs_mean")
        if stale is None:
            continue
        lost = (
            results["lag_0/train_infer_mask"] - results[f"lag_{lag}/train_infer_mask"]
        )
        if stale > HIDDEN_STALENESS_RATIO * fresh and lost > HIDDEN_STALENESS_MASK_LOSS:
            yield (
                f"staleness is taken for discrepancy: at lag {lag} mean |log r_d| is "
                f"{stale:.4f} against {fresh:.4f} for fresh tokens, and the mask drops "
                f"{lost:.0%} more; choose snapshot_old, or set eps_ti higher"
            )
            return
