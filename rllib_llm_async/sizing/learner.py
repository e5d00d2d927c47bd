"""Memory of a learner, and of the actors that score old versions beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.old_logprobs import (
    OldLogprobSource,
    SourceSettings,
    SourcesInUse,
    make_source,
)
from rllib_llm_async.sizing.place import Part, Place, nbytes_of
from rllib_llm_async.sizing.weightless import WeightlessPolicy


class _OldWeights(NamedTuple):
    """What sources hold of whole weights, in bytes."""

    #: EWMA weights and the like.
    on_device: float
    #: All snapshots.
    versions: float
    #: One of them, which takes the place of the learner's own weights in a pass.
    version: float

    def times(self, share: float) -> _OldWeights:
        """Of a learner that holds a share of each."""
        return _OldWeights(*(share * nbytes for nbytes in self))


def learner_places(
    config: Any, policy: WeightlessPolicy, staged: list[Part]
) -> Iterator[Place]:
    """Where the model computes, in the heaviest phase of an update, and beside it.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        policy: Its model.
        staged: What the first learner keeps there for engines.
    """
    count = max(1, config.num_learners)
    share = 1 / count if config.shards_weights else 1.0
    sources = SourcesInUse(
        config.old_logprob_source, config.compare_sources, _settings(config)
    )
    old = _old_weights(sources, config, policy.trainable()).times(share)
    trained = share * nbytes_of(policy.trainable().values())
    phases = {
        name: [*parts, *staged]
        for name, parts in _phases(config, policy, share, trained, old).items()
    }
    phase = max(phases, key=lambda name: nbytes_of(phases[name]))
    name = f"each of {count} learners" if count > 1 else "the learner"
    device, beside = (
        ("GPU", "host memory")
        if config.num_gpus_per_learner
        else ("memory", "beside it")
    )
    yield Place(f"{name}: {device}, {phase}", phases[phase])
    yield Place(
        f"{name}: {beside}",
        [
            Part(f"old versions, {_num_versions(config)} at most", old.versions),
            *([_moments(trained)] * config.optimizer_offload),
            Part(
                "a checkpoint, while it is written",
                3 * trained + old.on_device + old.versions,
            ),
        ],
    )


def _phases(
    config: Any,
    policy: WeightlessPolicy,
    share: float,
    trained: float,
    old: _OldWeights,
) -> dict[str, list[Part]]:
    """What is where a learner computes, by the phase of an update.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        policy: Its model.
        share: Of all that is as large as the weights, held by this learner.
        trained: Bytes of its share of what trains.
        old: Its share.
    """
    is_sharded, offload = config.shards_weights, config.optimizer_offload
    always = [
        Part(
            f"weights, 1 / {config.num_learners} of them" if is_sharded else "weights",
            share * nbytes_of(policy.lm.parameters()),
        ),
        Part("EWMA, and what else sources hold", old.on_device),
        Part("reference weights", trained if config.kl_coeff else 0),
        *([_moments(trained)] * (not offload)),
    ]
    gradients = [Part("gradients", trained)]
    if config.num_learners > 1 and not (
        is_sharded or config.torch_ddp_kwargs.get("gradient_as_bucket_view")
    ):
        # DistributedDataParallel adds them up in memory of its own.
        gradients.append(Part("gradients between learners", trained))
    gathered = [Part("layers gathered", _gathered_bytes(policy))] * is_sharded
    return {
        "training": [
            *always,
            *gradients,
            *gathered,
            _pass(config, policy, backward=True, keeps_casts=not is_sharded),
        ],
        "scoring": [
            *always,
            Part("an old version", old.version),
            Part("own weights, set aside", trained if is_sharded else 0),
            *gathered,
            _pass(config, policy, backward=False, keeps_casts=not is_sharded),
        ],
        "stepping": [*always, *gradients, *([_moments(trained)] * offload)],
    }


def _moments(trained: float) -> Part:
    return Part("Adam's moments", 2 * trained)


def old_logit_actor_places(config: Any, policy: WeightlessPolicy) -> Iterator[Place]:
    """Of the actors of `old_logit_model`, if there are any."""
    if not config.needs_old_logit_actors:
        return
    count = config.old_logit_model.get("num_actors", 1)
    source = make_source("snapshot_old", _settings(config))
    old = _old_weights([source], config, policy.trainable())
    yield Place(
        f"each of {count} old-logit actors" if count > 1 else "the old-logit actor",
        [
            Part("weights", nbytes_of(policy.lm.parameters())),
            Part(f"old versions, {_num_versions(config)} at most", old.versions),
            Part("an old version", old.version),
            _pass(config, policy, backward=False, keeps_casts=True),
        ],
    )


def _num_versions(config: Any) -> int:
    return config.max_staleness + 1


def _settings(config: Any) -> SourceSettings:
    # A limit of memory would have a source make a folder for the rest.
    return replace(SourceSettings.from_config(config), snapshot_memory_bytes=None)


def _old_weights(
    sources: Iterable[OldLogprobSource], config: Any, trainable: Mapping[str, Tensor]
) -> _OldWeights:
    on_device = versions = largest = 0.0
    for source in sources:
        source.on_publish(0, trainable)
        version = float(source.metrics().get(result_keys.SNAPSHOT_BYTES, 0))
        on_device += source.nbytes - version
        window = _num_versions(config) * version
        limit = config.snapshot_memory_bytes
        versions += window if limit is None else min(window, max(limit, version))
        largest = max(largest, version)
    return _OldWeights(on_device, versions, largest)


def _pass(config: Any, policy: WeightlessPolicy, **how: bool) -> Part:
    # One sequence may be more than what a pass is asked to take.
    tokens = max(config.micro_batch_tokens, config.engine.get("max_model_len") or 0)
    there = "there and back" if how["backward"] else "there"
    return Part(
        f"a pass {there} over {tokens:,} tokens", policy.pass_bytes(tokens, **how)
    )


def _gathered_bytes(policy: WeightlessPolicy) -> float:
    """Of sharded weights that are whole at a time: a layer, the one that follows, and
    what lies outside of layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [
        nbytes_of(module.parameters())
        for module in policy.lm.modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    outside = nbytes_of(policy.lm.parameters()) - sum(layers)
    return 2 * max(layers, default=0) + outside
