"""Settings that are right by themselves and cannot be together."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rllib_llm_async.models.resolve import local_copy, resolve_model
from rllib_llm_async.settings.names import did_you_mean
from rllib_llm_async.settings.reading import refused
from rllib_llm_async.settings.transport import check_transport


def check_combinations(values: Mapping[str, Any]) -> None:
    """Checks values, each of them right by itself.

    Raises:
        ValueError: For the first setting that the others exclude.
    """
    for check in (
        _objective,
        _sizes,
        _gpus,
        _one_model,
        _engine_of_model,
        _sources,
        _adapters,
        check_transport,
    ):
        for key, valid in check(values):
            setting, _, argument = key.partition(".")
            value = values[setting]
            raise refused(key, value[argument] if argument else value, valid)


def _objective(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys that cannot be as they are, and what they must be."""
    if values["eps_stale_low"] is None and values["eps_stale"] >= 2:
        yield (
            "eps_stale",
            "below 2, or eps_stale_low be set: the clip's lower end is 2 - eps_stale",
        )
    if values["discrepancy_weight"] == "none" and values["is_cap"] is not None:
        yield (
            "is_cap",
            "null with discrepancy_weight: none, which leaves out what it would bound",
        )
    if values["drop_uniform_groups"] and values["advantage_estimator"] == "gae":
        yield (
            "drop_uniform_groups",
            "false with advantage_estimator: gae, which learns from them as well",
        )
    if values["learner_sharding"] != "none" and values["torch_ddp_kwargs"]:
        yield "torch_ddp_kwargs", "empty with learner_sharding, which takes its place"


def _sizes(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    group_size = values["group_size"]
    unit = group_size * max(1, values["num_learners"])
    if values["episodes_per_update"] % unit:
        yield "episodes_per_update", f"a multiple of group_size x learners = {unit}"
    if values["num_concurrent_episodes"] < group_size:
        yield "num_concurrent_episodes", f"at least group_size = {group_size}"
    length, source = _context(values)
    if length is not None and values["max_response_tokens"] >= length:
        yield (
            "max_response_tokens",
            f"below {source} = {length}, which holds the prompt as well",
        )


def _gpus(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    keys = ("tensor_parallel_size", "pipeline_parallel_size")
    sizes = {f"engine.{key}": values["engine"].get(key, 1) for key in keys}
    sizes["num_engines_per_env_runner"] = values["num_engines_per_env_runner"]
    sizes = {key: size for key, size in sizes.items() if size > 1}
    workers = math.prod(sizes.values())
    if sizes and 0 < values["num_gpus_per_env_runner"] < workers:
        yield (
            "num_gpus_per_env_runner",
            f"at least {workers} = {' x '.join(sizes)}: each worker of an engine takes "
            "a GPU of its runner",
        )


def _context(values: Mapping[str, Any]) -> tuple[int | None, str]:
    """The longest dialogue in tokens, as far as it is known, and what says so."""
    length = values["engine"].get("max_model_len")
    if length not in (None, -1):
        return length, "engine.max_model_len"
    path, config = _config_of(values["model"])
    if "max_position_embeddings" not in config:
        return None, ""
    length = config["max_position_embeddings"]
    if type(length) is not int or length < 1:
        raise ValueError(
            f"model: {path}: max_position_embeddings: got {length!r}, must be a number "
            "of tokens"
        )
    return length, "the model's max_position_embeddings"


def _one_model(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What would give the engine another model than learners train."""
    engine = values["engine"]
    reason = "learners would not follow; change the model's config.json, which all read"
    overrides = engine.get("hf_overrides", {})
    if not isinstance(overrides, Mapping) or overrides.keys() - {"head_dtype"}:
        yield "engine.hf_overrides", f"{{head_dtype: ...}} at most: {reason}"
    if engine.get("hf_config_path") is not None:
        yield "engine.hf_config_path", f"null: {reason}"


def _engine_of_model(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What vLLM says of an engine's arguments when it reads the model's config."""
    engine, (_, config) = values["engine"], _config_of(values["model"])
    heads = config.get("num_attention_heads")
    if isinstance(heads, int) and heads % engine.get("tensor_parallel_size", 1):
        yield "engine.tensor_parallel_size", f"a divisor of the model's {heads} heads"
    limit, length = config.get("max_position_embeddings"), engine.get("max_model_len")
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    stretched = "factor" in str(rope)
    if not isinstance(limit, int) or not isinstance(length, int) or stretched:
        return
    limit = max(limit, config.get("model_max_length") or 0)
    if length > limit and not os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        yield "engine.max_model_len", f"at most the model's {limit} positions"


def _config_of(model: str) -> tuple[Path, dict[str, Any]]:
    """Where a model's config.json is and what it holds, as far as it is here."""
    name = resolve_model(model)
    path = Path(local_copy(name) or name, "config.json")
    return path, json.loads(path.read_text()) if path.exists() else {}


def _sources(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    # Sources of one's own are known to the registry alone, which imports torch.
    from rllib_llm_async.old_logprobs import find_source, source_class, source_names

    valid = source_names()
    chosen, compared = values["old_logprob_source"], values["compare_sources"]
    for key, names in (("old_logprob_source", [chosen]), ("compare_sources", compared)):
        for name in names:
            if find_source(name) is None:
                near = did_you_mean(name, valid).removeprefix(", ")
                yield key, f"one of {', '.join(valid)}" + (near and f"; {near}")
    if len(set(compared)) < len(compared):
        yield "compare_sources", "a list in which each source is named once"
    if compared and not any(source_class(s).is_exact for s in [chosen, *compared]):
        yield (
            "compare_sources",
            "a list with an exact source, e.g. snapshot_old (or train with one)",
        )


def _adapters(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names = [values["old_logprob_source"], *values["compare_sources"]]
    if values["lora_sync"] == "per_version" and "interrupt_sync" in names:
        yield (
            "lora_sync",
            "adapter or merged with interrupt_sync: what it scores is sampled under "
            "the outgoing version, and turns then go on under the next one",
        )
