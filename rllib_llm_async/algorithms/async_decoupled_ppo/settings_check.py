"""What settings may be: one error that names the key and what would be valid."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from rllib_llm_async.core.ratios import RATIO_LEVELS
from rllib_llm_async.env_runners.engine_settings import check_engine_settings
from rllib_llm_async.envs.registry import check_suite
from rllib_llm_async.models.resolve import resolve_model
from rllib_llm_async.old_logprobs import source_class, source_names

ADVANTAGE_ESTIMATORS = ("group_relative", "rloo", "gae")
LOSS_NORMALIZERS = ("tokens", "sequences", "episodes")
KL_REFERENCES = ("initial",)
_REALS = (
    "eps_ti",
    "eps_stale",
    "ewma_reset_threshold",
    "temperature",
    "kl_coeff",
    "lambda_",
    "vf_loss_coeff",
)
_COUNTS = (
    "max_staleness",
    "group_size",
    "episodes_per_update",
    "num_concurrent_episodes",
    "max_response_tokens",
    "micro_batch_tokens",
    "evaluation_num_trials",
)


def check_settings(config: Any) -> None:
    """Checks an `AsyncDecoupledPPOConfig`.

    Raises:
        ValueError: For the first setting that cannot be.
    """
    check = partial(_check, config)
    for key in _REALS:
        check(key, type(getattr(config, key)) in (int, float), "a number")
    for key in _COUNTS:
        check(key, type(getattr(config, key)) is int, "a whole number")
    for key in ("gradient_checkpointing", "trust_remote_code"):
        check(key, isinstance(getattr(config, key), bool), "true or false")
    for key in ("engine", "chat_template_kwargs"):
        check(key, isinstance(getattr(config, key), dict), "a mapping")
    check_engine_settings(config.engine)
    check(
        "compute_dtype",
        config.compute_dtype in (None, "bfloat16", "float16"),
        '"bfloat16", "float16" or null (float32)',
    )
    check(
        "lora",
        config.lora is None or isinstance(config.lora, dict),
        "a mapping or null",
    )
    for key in ("eps_ti", "eps_stale"):
        check(key, getattr(config, key) > 1, "a ratio bound above 1, e.g. 1.2")
    check(
        "eps_stale",
        config.eps_stale < 2,
        "below 2 (the clip's lower end is 2 - eps_stale)",
    )
    check(
        "old_logprob_source",
        config.old_logprob_source in source_names(),
        f"one of {', '.join(source_names())}",
    )
    _check_compared_sources(config, check)
    check("ratio_level", config.ratio_level in RATIO_LEVELS, f"one of {RATIO_LEVELS}")
    check(
        "advantage_estimator",
        config.advantage_estimator in ADVANTAGE_ESTIMATORS,
        f"one of {ADVANTAGE_ESTIMATORS}",
    )
    check(
        "snapshot_memory_bytes",
        config.snapshot_memory_bytes is None
        or (
            type(config.snapshot_memory_bytes) is int
            and config.snapshot_memory_bytes >= 0
        ),
        "a number of bytes or null",
    )
    check(
        "missing_snapshot",
        config.missing_snapshot in ("error", "drop"),
        '"error" or "drop"',
    )
    check(
        "loss_normalizer",
        config.loss_normalizer in LOSS_NORMALIZERS,
        f"one of {LOSS_NORMALIZERS}",
    )
    check("lambda_", 0 <= config.lambda_ <= 1, "in [0, 1]")
    check("vf_loss_coeff", config.vf_loss_coeff >= 0, "0 or more")
    check("kl_coeff", config.kl_coeff >= 0, "0 or more")
    check(
        "kl_reference",
        config.kl_reference in KL_REFERENCES,
        f"one of {KL_REFERENCES}",
    )
    check("is_cap", config.is_cap is None or config.is_cap > 0, "positive or null")
    check(
        "prox_alpha",
        config.prox_alpha == "staleness"
        or (not isinstance(config.prox_alpha, str) and 0 <= config.prox_alpha <= 1),
        '"staleness" or a number in [0, 1]',
    )
    check(
        "ewma_decay",
        config.ewma_decay == "auto"
        or (not isinstance(config.ewma_decay, str) and 0 <= config.ewma_decay < 1),
        '"auto" or a number in [0, 1)',
    )
    check(
        "ewma_reset_threshold",
        0 <= config.ewma_reset_threshold <= 1,
        "a share in [0, 1]",
    )
    check("temperature", config.temperature > 0, "above 0")
    check("max_staleness", config.max_staleness >= 0, "0 or more versions")
    check("evaluation_num_trials", config.evaluation_num_trials >= 1, "1 or more")
    check("group_size", config.group_size >= 2, "2 or more episodes")
    for key in ("max_response_tokens", "micro_batch_tokens"):
        check(key, getattr(config, key) > 0, "a positive number of tokens")
    check(
        "num_env_runners",
        # RLlib derives an evaluation config with 0 runners; see `evaluate`.
        config.in_evaluation or config.num_env_runners >= 1,
        "1 or more remote runners",
    )
    unit = config.group_size * max(1, config.num_learners)
    check(
        "episodes_per_update",
        config.episodes_per_update > 0 and config.episodes_per_update % unit == 0,
        f"a positive multiple of group_size x learners = {unit}",
    )
    check(
        "num_concurrent_episodes",
        config.num_concurrent_episodes >= config.group_size,
        f"at least group_size = {config.group_size}",
    )
    check(
        "minibatch_size",
        config.minibatch_size is None or config.minibatch_size > 0,
        "a positive number of episodes, or null for the whole batch",
    )
    _check_optimizer(config)
    check(
        "old_logit_model",
        isinstance(config.old_logit_model, dict)
        and set(config.old_logit_model) <= {"num_actors", "num_cpus", "num_gpus"}
        and all(
            type(value) in (int, float) and value >= 0
            for value in config.old_logit_model.values()
        )
        and config.old_logit_model.get("num_actors", 1) in range(1, 1025),
        "a mapping with num_actors, num_cpus and num_gpus, all numbers",
    )
    resolve_model(config.model_name_or_path)
    if isinstance(config.env, str):
        check_suite(config.env, config.env_config)


def _check(config: Any, key: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{key}: got {getattr(config, key)!r}, must be {expected}")


def _check_compared_sources(config: Any, check: Callable) -> None:
    valid = source_names()
    compared = config.compare_sources
    check(
        "compare_sources",
        isinstance(compared, list) and set(compared) <= set(valid),
        f"a list out of {', '.join(valid)}",
    )
    check(
        "compare_sources",
        not compared
        or any(
            source_class(name).is_exact
            for name in [config.old_logprob_source, *compared]
        ),
        "a list with an exact source, e.g. snapshot_old (or train with one)",
    )


def _check_optimizer(config: Any) -> None:
    try:
        if "lr" in config.optimizer:
            raise ValueError("lr is a setting of its own")
        torch.optim.AdamW([torch.zeros(1)], **config.optimizer)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer: got {config.optimizer!r}, must be arguments of "
            f"torch.optim.AdamW ({error})"
        ) from error
