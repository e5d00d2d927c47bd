"""Says in words when the numbers of a run do not mean what one would think.

One sentence per situation: what is the case, and what to change. Nothing here changes
a run. What concerns one source of pi_old alone, that source says itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rllib_llm_async import result_keys
from rllib_llm_async.core.strata import (
    ENTROPY_BUCKETS,
    LAG_BUCKETS,
    entropy_name,
    lag_name,
)
from rllib_llm_async.models.router_replay import router_replay
from rllib_llm_async.models.served_adapters import served_adapters
from rllib_llm_async.old_logprobs import source_class, source_names
from rllib_llm_async.result_keys import at_entropy, at_lag

#: At a lag, |log r_d| this many times that of fresh tokens is staleness, not numerics.
HIDDEN_STALENESS_RATIO = 3.0
#: ... if the mask also drops this much more there.
HIDDEN_STALENESS_MASK_LOSS = 0.02
#: With an exact source the mask should keep nearly everything.
MIN_EXACT_MASK_SHARE = 0.9
#: With a proxy that keeps less, hardly anything is learned from.
MIN_PROXY_MASK_SHARE = 0.1
#: Of the tokens at which the policy is of two minds (entropies of these buckets, in
#: nats) the mask should keep more than this: nearly all there is to learn is theirs,
#: and a mean over all tokens, most of which were certain, does not show it.
OF_TWO_MINDS = ENTROPY_BUCKETS[2:]
MIN_UNCERTAIN_MASK_SHARE = 0.75
#: Mean |log r_d| of fresh tokens that the numerics of the wider of the two dtypes
#: explain; bfloat16 gives 1e-3 to 4e-2 even where nothing is wrong.
NUMERICAL_NOISE = {"float32": 1e-4, "bfloat16": 1e-3, "float16": 1e-3}
#: Setting -> the setting and value without which it does nothing.
DEPENDENT = {
    "gamma": ("advantage_estimator", "gae"),
    "lambda_": ("advantage_estimator", "gae"),
    "vf_loss_coeff": ("advantage_estimator", "gae"),
    "is_cap": ("discrepancy_weight", "ratio"),
}


def config_warnings(config: Any) -> Iterator[str]:
    """What can be told from an `AsyncDecoupledPPOConfig` alone."""
    yield from source_class(config.old_logprob_source).config_warnings(config)
    yield from _merged_adapters(config)
    yield from _routing(config)
    yield from _unread_variables(config)
    for setting, because in sorted(_without_effect(config).items()):
        yield f"{setting} does nothing with {because}: leave it out"


def _merged_adapters(config: Any) -> Iterator[str]:
    if config.lora is None or config.lora_sync != "auto" or config.served_adapters:
        return
    served = served_adapters(
        config.model_path, config.lora, trust_remote_code=config.trust_remote_code
    )
    yield (
        "engines load all weights of each version, with the adapters merged into them: "
        f"vLLM cannot serve {served.merged_because} as an adapter"
    )


def _routing(config: Any) -> Iterator[str]:
    if config.router_replay != "auto":
        return
    reason = router_replay(
        config.model_path, config.engine, trust_remote_code=config.trust_remote_code
    ).off_because
    if reason:
        yield (
            "engines and learners route each by themselves, and r_d is that of other "
            f"experts where they disagree: {reason}"
        )


def _unread_variables(config: Any) -> Iterator[str]:
    if config.chat_template_kwargs:
        try:
            unread = config.build_chat_format().unread_variables()
        except OSError:  # of a hub that is out of reach
            return
        for name, near in unread:
            yield (
                f"chat_template_kwargs.{name} does nothing with the template of "
                f"{config.model_name_or_path}{near or ': leave it out'}"
            )


def _without_effect(config: Any) -> dict[str, str]:
    """Settings that were given and have no effect, and with what."""
    default = type(config)()

    def is_given(setting: str) -> bool:
        return getattr(config, setting) != getattr(default, setting)

    names = [config.old_logprob_source, *config.compare_sources]
    read = frozenset().union(*(source_class(name).reads for name in names))
    found = {
        setting: f"old_logprob_source {config.old_logprob_source}"
        for setting in source_settings() - read
        if is_given(setting)
    }
    for setting, (other, value) in DEPENDENT.items():
        if is_given(setting) and getattr(config, other) != value:
            found[setting] = f"{other} {getattr(config, other)}"
    if is_given("lora_sync") and config.lora is None:
        found["lora_sync"] = "lora null"
    if is_given("learner_sharding") and not config.shards_weights:
        found["learner_sharding"] = f"num_learners {config.num_learners}"
    if not config.kl_coeff and is_given("kl_estimator"):
        found["kl_estimator"] = "kl_coeff 0"
    return found


def source_settings() -> frozenset[str]:
    """Settings that act through sources alone."""
    return frozenset().union(*(source_class(name).reads for name in source_names()))


def result_warnings(config: Any, results: Mapping[str, float]) -> Iterator[str]:
    """What one update's learner results tell."""
    if results.get(result_keys.HAD_SIGNAL) == 0:
        yield (
            "an update had no signal and changed nothing: every token was masked or "
            "dropped, or all episodes of each group earned the same; set eps_ti "
            "higher, or see why the tasks are all solved or all failed"
        )
    elif results.get(result_keys.NUM_STEPS_TAKEN) == 0:
        yield (
            "an update changed nothing since no gradient was finite: "
            f"{results[result_keys.NUM_SKIPPED_STEPS]:.0f} steps have been skipped so "
            "far; go on from an earlier checkpoint with a lower lr, or set another "
            "compute_dtype or attn_implementation"
        )
    source = source_class(config.old_logprob_source)
    yield from source.result_warnings(config, results)
    share = results.get(result_keys.TRAIN_INFER_MASK, 1.0)
    yield from _masked_decisions(config, results, share)
    if source.was_exact(results):
        yield from _warnings_of_exact(config, results, share)
        return
    if share < MIN_PROXY_MASK_SHARE:
        yield (
            f"the mask keeps next to nothing under {source.name}: {share:.1%} of the "
            "tokens are learned from; choose snapshot_old, or set eps_ti higher"
        )
    yield from _hidden_staleness(results)


def _warnings_of_exact(
    config: Any, results: Mapping[str, float], share: float
) -> Iterator[str]:
    if share < MIN_EXACT_MASK_SHARE:
        yield (
            f"engine and trainer disagree under the same weights: the mask keeps "
            f"{share:.0%} of tokens although pi_old is exact; compare engine.dtype "
            "with compute_dtype, or set eps_ti higher"
        )
    fresh = results.get(at_lag("0", result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN))
    dtype = config.engine.get("dtype", "bfloat16")
    if fresh is not None and fresh < NUMERICAL_NOISE[dtype]:
        yield (
            "engine and trainer agree to within numerical noise, so that mu_old is "
            f"pi_old already: mean |log r_d| of fresh tokens is {fresh:.1e} with a "
            f"{dtype} engine; rollout is exact here and costs no pass"
        )


def _masked_decisions(
    config: Any, results: Mapping[str, float], share: float
) -> Iterator[str]:
    # What no token of an entropy could tell is not among the results, or NaN.
    found = [
        (of_bucket, results[at_entropy(name, result_keys.TRAIN_INFER_MASK)])
        for name in map(entropy_name, OF_TWO_MINDS)
        if (of_bucket := results.get(at_entropy(name, result_keys.TOKEN_SHARE), 0)) > 0
    ]
    tokens = sum(of_bucket for of_bucket, _ in found)
    if not tokens:
        return
    kept = sum(of_bucket * share_kept for of_bucket, share_kept in found) / tokens
    if kept < MIN_UNCERTAIN_MASK_SHARE:
        yield (
            "the mask drops tokens at which the policy decides: of those with an "
            f"entropy over {OF_TWO_MINDS[0][0]:g} nats it keeps {kept:.0%}, of all "
            f"{share:.1%}; set eps_ti={config.eps_ti:g} higher, or see with `rllib "
            "numerics` what makes the engine differ"
        )


def _hidden_staleness(results: Mapping[str, float]) -> Iterator[str]:
    fresh = results.get(at_lag("0", result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN))
    if fresh is None:
        return
    for bucket in LAG_BUCKETS[1:]:
        lag = lag_name(bucket)
        stale = results.get(at_lag(lag, result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN))
        if stale is None:
            continue
        kept = [
            results[at_lag(age, result_keys.TRAIN_INFER_MASK)] for age in ("0", lag)
        ]
        lost = kept[0] - kept[1]
        if stale > HIDDEN_STALENESS_RATIO * fresh and lost > HIDDEN_STALENESS_MASK_LOSS:
            yield (
                f"staleness is taken for discrepancy: at lag {lag} mean |log r_d| is "
                f"{stale:.4f} against {fresh:.4f} for fresh tokens, and the mask drops "
                f"{lost:.0%} more; choose snapshot_old, or set eps_ti higher"
            )
            return
