"""Memory of each process of a job, part by part, from its config alone.

Weights, gradients, moments and old versions are what learners and sources really hold;
a pass is counted (`sizing.weightless`). Where a part grows, it is what it may come to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from rllib_llm_async.sizing.learner import learner_places, old_logit_actor_places
from rllib_llm_async.sizing.place import Part, Place, nbytes_of
from rllib_llm_async.sizing.weightless import WeightlessPolicy, weightless
from rllib_llm_async.transport.outbox import MAX_DIFFERENCES

#: Of a token in an episode on its way: its number, and what the engine said of it.
_EPISODE_BYTES_PER_TOKEN = 8 + 4 + 8
_BYTES_PER_EXPERT = 2
#: Tokens of a sequence whose length nobody has bounded.
_SOME_TOKENS = 1000


@dataclass(frozen=True)
class JobSize:
    """What a job takes.

    Attributes:
        num_parameters: Of the model.
        num_trained: Of the model, or of its adapters.
        places: All that holds something.
    """

    num_parameters: int
    num_trained: int
    places: list[Place]


def size_of(config: Any) -> JobSize:
    """Memory of each process of a job.

    Args:
        config: An `AsyncDecoupledPPOConfig`.

    Raises:
        ValueError: If the model's config cannot be read, or adapters do not fit it.
    """
    serves_adapters = config.served_adapters is not None
    with weightless(config.get_default_rl_module_spec().model_config) as policy:
        num_trained = sum(p.numel() for p in policy.trainable().values())
        num_served = num_trained if serves_adapters else policy.num_parameters
        version = Part(
            "a version, as engines load it", num_served * _engine_dtype(config).itemsize
        )
        travels_as_file = config.chosen_transport == "shared_file"
        found = [
            *learner_places(config, policy, [version] * (not travels_as_file)),
            *old_logit_actor_places(config, policy),
            *_engine(config, policy),
            *(_shared_memory(version) if travels_as_file else []),
            _object_store(config, policy),
        ]
    places = [
        replace(place, parts=[part for part in place.parts if part.nbytes])
        for place in found
        if place.nbytes
    ]
    return JobSize(policy.num_parameters, num_trained, places)


def _engine(config: Any, policy: WeightlessPolicy) -> Iterator[Place]:
    """One device of an engine; vLLM gives its cache what the weights leave."""
    arguments = config.engine
    dtype = _engine_dtype(config)
    devices = arguments.get("tensor_parallel_size", 1) * arguments.get(
        "pipeline_parallel_size", 1
    )
    name = "each GPU of an engine" if config.num_gpus_per_env_runner else "each engine"
    weights = policy.num_parameters * dtype.itemsize / devices
    yield Place(name, [Part("weights", weights)])
    length = arguments.get("max_model_len") or _SOME_TOKENS
    of_token = kv_bytes_per_token(policy.config, dtype, arguments) / devices
    yield Place(
        f"{name}: each sequence",
        [Part(f"keys and values of {length:,} tokens", length * of_token)],
    )


def _engine_dtype(config: Any) -> torch.dtype:
    return getattr(torch, config.engine.get("dtype", "bfloat16"))


def kv_bytes_per_token(
    model: Any, dtype: torch.dtype, arguments: Mapping[str, Any]
) -> float:
    """What the keys and values of a token take over all layers.

    Args:
        model: The text model's config.
        dtype: Of the engine.
        arguments: Of `vllm.AsyncEngineArgs`.
    """
    types = getattr(model, "layer_types", None) or [""] * model.num_hidden_layers
    num_layers = sum("linear" not in each for each in types)
    is_narrow = str(arguments.get("kv_cache_dtype", "auto")).startswith("fp8")
    if getattr(model, "kv_lora_rank", None):  # one latent vector for both
        width = model.kv_lora_rank + model.qk_rope_head_dim
    else:
        heads = getattr(model, "num_key_value_heads", model.num_attention_heads)
        size = getattr(model, "head_dim", None)
        width = 2 * heads * (size or model.hidden_size // model.num_attention_heads)
    return num_layers * width * (1 if is_narrow else dtype.itemsize)


def _shared_memory(version: Part) -> Iterator[Place]:
    yield Place(
        "/dev/shm, first learner's node",
        [
            version,
            Part("the one before, while it is read", version.nbytes),
            Part("what changed, for other nodes", MAX_DIFFERENCES * version.nbytes),
        ],
    )
    yield Place("/dev/shm, nodes of engines", [version])


def _object_store(config: Any, policy: WeightlessPolicy) -> Place:
    per_token = _EPISODE_BYTES_PER_TOKEN
    if config.replays_routers:
        experts = policy.config.num_hidden_layers * policy.config.num_experts_per_tok
        per_token += _BYTES_PER_EXPERT * experts
    episodes = (config.max_staleness + 1) * config.episodes_per_update
    length = config.engine.get("max_model_len") or _SOME_TOKENS
    parts = [
        Part(
            f"{episodes:,} episodes of {length:,} tokens", episodes * length * per_token
        )
    ]
    if config.needs_old_logit_actors:
        count = config.max_staleness + 1  # as a `WeightBoard` keeps them
        trained = nbytes_of(policy.trainable().values())
        parts.append(
            Part(f"trained weights of {count} versions, for scoring", count * trained)
        )
    return Place("Ray's object store", parts)
