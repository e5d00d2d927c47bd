"""Learners that share one policy's weights: what a test asks of each of them."""

import copy
import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from ray.exceptions import ActorDiedError
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer
from torch.distributed.tensor import DTensor

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch import weight_publisher
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharded_checkpoint import (
    SHARDS,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.old_logprobs import source_names
from tests.algorithms.in_place import Announced, InPlace
from tests.algorithms.routed_episodes import with_experts
from tests.algorithms.test_learner_state import ScoringPublisher
from tests.algorithms.two_learners import ESTIMATORS, build, episodes_of, share_of

#: Results that are of all learners' tokens, and of whole gradients.
FIGURES = (
    "train_infer_mask",
    "num_agent_tokens",
    "staleness_mean",
    "effective_sample_size",
    "gradients_default_optimizer_global_norm",
)
SHARDED = {"learner_sharding": "fsdp2"}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
RECOMPUTE = {"old_logprob_source": "current_recompute"}
CASES = {
    **{source: {"old_logprob_source": source} for source in source_names()},
    **{name: {**RECOMPUTE, "advantage_estimator": name} for name in ESTIMATORS},
    # The first learner makes several passes for one of the second.
    "micro_batches": {"old_logprob_source": "snapshot_old", "micro_batch_tokens": 64},
    "micro_batches_gae": {
        **RECOMPUTE,
        "advantage_estimator": "gae",
        "micro_batch_tokens": 64,
    },
    "gradient_checkpointing": {**RECOMPUTE, "gradient_checkpointing": True},
    "lora": {"old_logprob_source": "snapshot_old", "lora": LORA, "kl_coeff": 0.5},
    "bfloat16": {
        "old_logprob_source": "snapshot_old",
        "compute_dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
    # Frozen weights are in bfloat16 then, adapters in float32.
    "lora_bfloat16": {
        "old_logprob_source": "ewma_prox",
        "compute_dtype": "bfloat16",
        "lora": LORA,
        "lr": 0.03,
    },
    "kl": {**RECOMPUTE, "kl_coeff": 0.5, "ratio_level": "sequence"},
    "compared": {**RECOMPUTE, "compare_sources": ["snapshot_old", "ewma_prox"]},
    "clip_by_norm": {**RECOMPUTE, "grad_clip": 1e-2, "grad_clip_by": "norm"},
    "clip_by_value": {**RECOMPUTE, "grad_clip": 1e-3, "grad_clip_by": "value"},
    "optimizer_offload": {**RECOMPUTE, "optimizer_offload": True},
    "no_clip": {**RECOMPUTE, "grad_clip": None},
    "adam": {
        **RECOMPUTE,
        "lr": [[0, 1e-3], [20, 1e-4]],
        "optimizer": {"eps": 1e-3, "weight_decay": 0.1, "amsgrad": True},
    },
}
#: One of each kind: whole weights beside shares, a head, adapters, a clip, moments
#: elsewhere, experts.
QUICK = (
    "snapshot_old",
    "ewma_prox",
    "gae",
    "micro_batches",
    "lora_bfloat16",
    "kl",
    "compared",
    "clip_by_norm",
    "optimizer_offload",
    "adam",
    "mixture",
)


def scored_episodes(update):
    """As `OldLogitActor` would hand them on."""
    episodes = episodes_of(update, [*range(update + 1)])
    rng = np.random.default_rng(update)
    for number, episode in enumerate(episodes):
        episode.custom_data[columns.EPISODE_KEY] = 100 * update + number
        outputs = episode.extra_model_outputs
        outputs[columns.EPISODE_OLD_LOGP] = InfiniteLookbackBuffer(
            [
                (turn + rng.normal(0, 0.3, len(turn))).astype(np.float32)
                for turn in outputs[columns.EPISODE_BEHAVIOR_LOGP].data
            ]
        )
    return episodes


def train(rank, num_learners, settings, first=0, last=2, learner=None):
    """A learner after some updates; in the second the first learner gets all."""
    batches = [scored_episodes(update) for update in range(last)]
    if learner is None:
        learner = build(num_learners, settings)
        if "model" in settings:  # a mixture, whose experts come with the episodes
            batches = [
                with_experts(batch, number) for number, batch in enumerate(batches)
            ]
    learner._publisher = ScoringPublisher(learner, batches)
    for update in range(first, last):
        episodes = copy.deepcopy(batches[update])
        learner.last_results = learner.update(
            training_data=TrainingData(
                episodes=share_of(rank, num_learners, update, episodes)
            ),
            timesteps={"num_env_steps_sampled_lifetime": 10 * (update + 1)},
        )[DEFAULT_MODULE_ID]
        assert learner._version == update + 1
    return learner


def whole_weights(learner):
    """All parameters in one vector; of sharded ones all learners ask together."""
    return torch.cat(
        [
            (p.full_tensor() if isinstance(p, DTensor) else p).detach().flatten()
            for p in learner._policy.parameters()
        ]
    )


def trained(rank, num_learners, settings):
    learner = train(rank, num_learners, settings)
    results = learner.last_results
    if "model" in settings:
        assert results[result_keys.ROUTER_REPLAY_SHARE].peek() == 1.0
    figures = {name: float(results[name].peek()) for name in FIGURES}
    return whole_weights(learner), figures


class Sharded:
    """`trained` of each of some cases, by learners that share the weights.

    Args:
        settings: By name.
    """

    def __init__(self, settings):
        self.settings = settings

    def __call__(self, rank, num_learners):
        return {
            name: trained(rank, num_learners, {**settings, **SHARDED})
            for name, settings in self.settings.items()
        }


def look_inside(rank, num_learners):
    """Sizes, passes under other weights, one that fails, and what is published."""
    settings = {
        "old_logprob_source": "auto",
        "compare_sources": ["interrupt_sync", "old_logit_model"],
        "kl_coeff": 0.5,
        **(SHARDED if num_learners > 1 else {}),
    }
    learner = train(rank, num_learners, settings, last=1)
    return {
        "bytes": held_bytes(learner),
        **pass_under_other_weights(learner),
        "published": published(rank, learner),
    }


def held_bytes(learner):
    """By what for, the bytes of tensors as large as the weights."""
    sources = {source.name: source for source in learner._sources}
    optimizer = next(iter(learner._optimizer_parameters))
    moments = [t for s in optimizer.state.values() for t in s.values() if t.dim()]
    return {
        "weights": sum(p.nbytes for p in learner._weights.optimized()),
        "optimizer": sum(t.nbytes for t in moments),
        "ewma": sources["auto"].proxy.nbytes,
        "snapshots": sources["auto"].exact.nbytes,
        "outgoing": sum(t.nbytes for t in sources["interrupt_sync"].outgoing.values()),
        "reference": sum(t.nbytes for t in learner._reference.values()),
    }


def pass_under_other_weights(learner):
    batch = learner._build_batch(TrainingData(episodes=scored_episodes(0)))
    now, other = learner._weights.copy(), learner._reference
    before = learner._forward(batch, None)
    under_other = learner._forward(batch, other)
    hook = learner._policy.causal_lm.model.norm.register_forward_pre_hook(_fail)
    try:
        learner._forward(batch, other)
    except ZeroDivisionError:
        hook.remove()
    again = learner._forward(batch, None)
    kept = learner._weights.trainable()
    return {
        "before": before,
        "under_other": under_other,
        "again": again,
        "weights_kept": all(torch.equal(now[n], kept[n]) for n in now),
    }


def _fail(*_):
    raise ZeroDivisionError


def _died(*_):
    raise ActorDiedError


def published(rank, learner):
    """The file for engines, the weights for old-logit actors, the probe's log pi."""
    coordinator = Announced()
    ray, weight_publisher.ray = weight_publisher.ray, InPlace
    try:
        learner.connect(coordinator)
        learner.finish_publishing()
        # Seen by one of the learners before its own interruption, by none after it.
        if rank == 1:
            coordinator.interrupt = SimpleNamespace(remote=_died)
        source = next(s for s in learner._sources if s.stops_generation)
        learner._publisher.score_outgoing(learner._version, source)
    finally:
        weight_publisher.ray = ray
    assert len(coordinator.taken) == (rank == 0)
    return [
        (
            Path(one.weights.path).read_bytes(),
            one.trainer_weights,
            one.expected.probe_logp,
        )
        for one in coordinator.taken
    ]


def without_room(rank, num_learners):
    """What publishing raises, twice, where shared memory has no room."""
    learner = build(num_learners, SHARDED)
    fallocate, ray = os.posix_fallocate, weight_publisher.ray
    os.posix_fallocate, weight_publisher.ray = _has_no_room, InPlace
    errors = []
    try:
        for publish in (
            lambda: learner.connect(Announced()),
            lambda: learner._publisher.publish(1),
        ):
            try:
                publish()
            except OSError as error:
                errors.append(str(error))
    finally:
        os.posix_fallocate, weight_publisher.ray = fallocate, ray
    # One that is a pass behind would get another tensor than it asks for.
    return errors, learner._weights.norm([*learner._weights.trainable().values()])


def _has_no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Saves:
    """Two updates, then a checkpoint.

    Args:
        path: Of the checkpoint.
        settings: Of the learners.
    """

    def __init__(self, path, settings):
        self.path, self.settings = str(path), {**settings, **SHARDED}

    def __call__(self, rank, num_learners):
        learner = train(rank, num_learners, self.settings)
        if rank == 0:
            learner.save_to_path(self.path)
        assert learner.save_shards(f"{self.path}/{SHARDS}") is None
        return whole_weights(learner)


class GoesOn(Saves):
    """Two more updates from there: weights at first and at the end, versions held."""

    def __call__(self, rank, num_learners):
        learner = build(num_learners, self.settings)
        with torch.no_grad():
            for parameter in learner._weights.optimized():
                parameter.add_(0.1)  # what is not restored is wrong
        learner.restore_from_path(self.path)
        restored = whole_weights(learner)
        versions = learner._source.store.versions
        train(rank, num_learners, None, first=2, last=4, learner=learner)
        return restored, whole_weights(learner), versions
