"""What settings may be: one error that names the key and what would be valid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rllib_llm_async.chat.check import check_chat_format
from rllib_llm_async.core.ratios import RATIO_LEVELS
from rllib_llm_async.env_runners.engine_settings import check_engine_settings
from rllib_llm_async.envs.registry import check_suite
from rllib_llm_async.models.resolve import resolve_model
from rllib_llm_async.old_logprobs import source_class, source_names

ADVANTAGE_ESTIMATORS = ("group_relative", "rloo", "gae")
LOSS_NORMALIZERS = ("tokens", "sequences", "episodes")
KL_REFERENCES = ("initial",)

#: Of which type settings are, checked before anything else.
_TYPES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "a number",
        lambda value: type(value) in (int, float),
        (
            "eps_ti",
            "eps_stale",
            "ewma_reset_threshold",
            "temperature",
            "kl_coeff",
            "lambda_",
            "vf_loss_coeff",
        ),
    ),
    (
        "a whole number",
        lambda value: type(value) is int,
        (
            "max_staleness",
            "group_size",
            "episodes_per_update",
            "num_concurrent_episodes",
            "max_response_tokens",
            "micro_batch_tokens",
            "evaluation_num_trials",
        ),
    ),
    (
        "true or false",
        lambda value: isinstance(value, bool),
        ("gradient_checkpointing", "trust_remote_code"),
    ),
    (
        "a mapping",
        lambda value: isinstance(value, dict),
        ("engine", "chat_template_kwargs", "old_logit_model"),
    ),
)

#: Key, what must hold of the value, and how that is said.
_VALUES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("eps_ti", lambda x: x > 1, "a ratio bound above 1, e.g. 1.2"),
    ("eps_stale", lambda x: x > 1, "a ratio bound above 1, e.g. 1.2"),
    ("eps_stale", lambda x: x < 2, "below 2 (the clip's lower end is 2 - eps_stale)"),
    ("ratio_level", lambda x: x in RATIO_LEVELS, f"one of {RATIO_LEVELS}"),
    ("is_cap", lambda x: x is None or x > 0, "positive or null"),
    (
        "prox_alpha",
        lambda x: x == "staleness" or (not isinstance(x, str) and 0 <= x <= 1),
        '"staleness" or a number in [0, 1]',
    ),
    (
        "ewma_decay",
        lambda x: x == "auto" or (not isinstance(x, str) and 0 <= x < 1),
        '"auto" or a number in [0, 1)',
    ),
    ("ewma_reset_threshold", lambda x: 0 <= x <= 1, "a share in [0, 1]"),
    (
        "snapshot_memory_bytes",
        lambda x: x is None or (type(x) is int and x >= 0),
        "a number of bytes or null",
    ),
    ("missing_snapshot", lambda x: x in ("error", "drop"), '"error" or "drop"'),
    (
        "advantage_estimator",
        lambda x: x in ADVANTAGE_ESTIMATORS,
        f"one of {ADVANTAGE_ESTIMATORS}",
    ),
    (
        "loss_normalizer",
        lambda x: x in LOSS_NORMALIZERS,
        f"one of {LOSS_NORMALIZERS}",
    ),
    ("lambda_", lambda x: 0 <= x <= 1, "in [0, 1]"),
    ("vf_loss_coeff", lambda x: x >= 0, "0 or more"),
    ("kl_coeff", lambda x: x >= 0, "0 or more"),
    ("kl_reference", lambda x: x in KL_REFERENCES, f"one of {KL_REFERENCES}"),
    ("temperature", lambda x: x > 0, "above 0"),
    ("max_response_tokens", lambda x: x > 0, "a positive number of tokens"),
    ("micro_batch_tokens", lambda x: x > 0, "a positive number of tokens"),
    (
        "compute_dtype",
        lambda x: x in (None, "bfloat16", "float16"),
        '"bfloat16", "float16" or null (float32)',
    ),
    ("lora", lambda x: x is None or isinstance(x, dict), "a mapping or null"),
    ("max_staleness", lambda x: x >= 0, "0 or more versions"),
    ("group_size", lambda x: x >= 2, "2 or more episodes"),
    (
        "minibatch_size",
        lambda x: x is None or x > 0,
        "a positive number of episodes, or null for the whole batch",
    ),
    ("evaluation_num_trials", lambda x: x >= 1, "1 or more"),
    (
        "old_logit_model",
        lambda x: (
            set(x) <= {"num_actors", "num_cpus", "num_gpus"}
            and all(type(v) in (int, float) and v >= 0 for v in x.values())
            and x.get("num_actors", 1) in range(1, 1025)
        ),
        "a mapping with num_actors, num_cpus and num_gpus, all numbers",
    ),
)


def check_settings(config: Any) -> None:
    """Checks an `AsyncDecoupledPPOConfig`.

    Raises:
        ValueError: For the first setting that cannot be.
    """
    for expected, is_of_type, keys in _TYPES:
        for key in keys:
            _check(config, key, is_of_type(getattr(config, key)), expected)
    for key, is_valid, expected in _VALUES:
        _check(config, key, is_valid(getattr(config, key)), expected)
    check_engine_settings(config.engine)
    _check_sources(config)
    _check_numbers_that_belong_together(config)
    _check_optimizer(config)
    resolve_model(config.model_name_or_path)
    check_chat_format(
        config.model_path,
        config.chat_template_kwargs,
        config.tool_parser,
        config.reasoning_parser,
        config.trust_remote_code,
    )
    if isinstance(config.env, str):
        check_suite(config.env, config.env_config)


def _check(config: Any, key: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{key}: got {getattr(config, key)!r}, must be {expected}")


def _check_sources(config: Any) -> None:
    valid = source_names()
    names = ", ".join(valid)
    chosen, compared = config.old_logprob_source, config.compare_sources
    _check(config, "old_logprob_source", chosen in valid, f"one of {names}")
    _check(
        config,
        "compare_sources",
        isinstance(compared, list) and set(compared) <= set(valid),
        f"a list out of {names}",
    )
    _check(
        config,
        "compare_sources",
        not compared or any(source_class(s).is_exact for s in [chosen, *compared]),
        "a list with an exact source, e.g. snapshot_old (or train with one)",
    )


def _check_numbers_that_belong_together(config: Any) -> None:
    _check(
        config,
        "num_env_runners",
        # RLlib derives an evaluation config with 0 runners; see `evaluate`.
        config.in_evaluation or config.num_env_runners >= 1,
        "1 or more remote runners",
    )
    unit = config.group_size * max(1, config.num_learners)
    _check(
        config,
        "episodes_per_update",
        config.episodes_per_update > 0 and config.episodes_per_update % unit == 0,
        f"a positive multiple of group_size x learners = {unit}",
    )
    _check(
        config,
        "num_concurrent_episodes",
        config.num_concurrent_episodes >= config.group_size,
        f"at least group_size = {config.group_size}",
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
