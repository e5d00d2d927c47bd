"""What ``engine`` may hold, told before vLLM is imported (which takes seconds)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from rllib_llm_async.settings.installed import (
    Argument,
    dataclass_fields,
    source_folder,
    source_of,
    type_aliases,
)
from rllib_llm_async.settings.names import did_you_mean
from rllib_llm_async.settings.reading import refused

ENGINE_DTYPES = ("float32", "bfloat16", "float16")
_TRUNCATED = (
    "tokens are sampled from the whole distribution, which is what mu_old and pi_old "
    "are probabilities of; leave it out"
)
_ONE_NODE = (
    "all workers of an engine sit on its runner's node, where the weights and its GPUs "
    "are; more nodes are more env runners"
)
#: Keys that look right and are not, and why.
_REFUSED = {
    "top_p": _TRUNCATED,
    "top_k": _TRUNCATED,
    "min_p": _TRUNCATED,
    "temperature": "it is a setting of its own, beside engine",
    "max_tokens": "set max_response_tokens, beside engine",
    "trust_remote_code": "it is a setting of its own, beside engine",
    "model": "it is a setting of its own, beside engine",
    "tokenizer": "engines take and give tokens, which are those of `model`",
    "hf_token": "settings are kept with the results; set the variable HF_TOKEN",
    "logprobs_mode": "it has to be that of the distribution sampled from",
    "worker_extension_cls": "weights arrive through it",
    "weight_transfer_config": "weights arrive through it",
    "nnodes": _ONE_NODE,
    "node_rank": _ONE_NODE,
    "enable_lora": "lora and lora_sync decide it",
    "max_lora_rank": "lora decides it",
    "lora_target_modules": "lora decides it",
    "enable_return_routed_experts": "router_replay decides it",
    "aux_output_config": "router_replay decides it",
    "return_sampling_mask": "nothing is sampled from a truncated distribution",
}
#: Bounds that vLLM does not state and that end in an error of its own.
_BOUNDS = {
    "kv_cache_memory_bytes": {"gt": 0},
    "num_gpu_blocks_override": {"gt": 0},
    "seed": {"ge": 0},
}


def check_engine_settings(engine: Mapping[str, Any]) -> None:
    """Checks ``engine`` against names, types and bounds of the installed vLLM.

    Raises:
        ValueError: Names the key and why it cannot be, or what can.
    """
    valid = engine_arguments()
    for key, value in engine.items():
        if key in _REFUSED:
            raise ValueError(f"engine.{key}: {_REFUSED[key]}")
        if key == "dtype" and value not in ENGINE_DTYPES:
            raise refused("engine.dtype", value, f"one of {', '.join(ENGINE_DTYPES)}")
        if key == "distributed_executor_backend" and value == "ray":
            raise refused(f"engine.{key}", value, f"mp, uni or null: {_ONE_NODE}")
        if not valid:  # vLLM is not installed here
            continue
        if key not in valid:
            raise ValueError(
                f"engine.{key}: no argument of vllm.AsyncEngineArgs"
                f"{did_you_mean(key, valid)}"
            )
        words = valid[key].fault(value, _aliases())
        if words is not None:
            raise refused(f"engine.{key}", value, words)


@cache
def engine_arguments() -> dict[str, Argument]:
    """Fields of vLLM's engine arguments, from its source; empty where it is missing.

    Bounds stand with the field of a config class that a default names, or that has the
    same name if only one has.
    """
    source = source_of("vllm", "engine/arg_utils.py")
    arguments = dataclass_fields(ast.parse(source), ["EngineArgs", "AsyncEngineArgs"])
    configs = _config_fields()
    for name, argument in arguments.items():
        named = argument.default and _named_field(argument.default)
        if named:
            fields = [configs[named]] if named in configs else []
        else:
            fields = [field for (_, key), field in configs.items() if key == name]
        if len(fields) == 1:
            argument.bounds = fields[0].bounds
            argument.optional = fields[0].optional
    for name, bounds in _BOUNDS.items():
        if name in arguments:
            arguments[name].bounds = bounds
    return arguments


def _named_field(default: ast.expr) -> tuple[str, str] | None:
    """Of ``CacheConfig.block_size`` or ``get_field(CacheConfig, "block_size")``."""
    if isinstance(default, ast.Attribute):
        return ast.unparse(default.value), default.attr
    if isinstance(default, ast.Call) and len(default.args) == 2:
        cls, name = default.args
        if isinstance(name, ast.Constant):
            return ast.unparse(cls), str(name.value)
    return None


def _config_fields() -> dict[tuple[str, str], Argument]:
    return {
        (node.name, name): field
        for module in _config_modules()
        for node in module.body
        if isinstance(node, ast.ClassDef)
        for name, field in dataclass_fields(module, [node.name]).items()
    }


@cache
def _aliases() -> dict[str, ast.expr]:
    return type_aliases(_config_modules())


@cache
def _config_modules() -> list[ast.Module]:
    folder = source_folder("vllm")
    return [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("config/*.py") if folder else [])
    ]
