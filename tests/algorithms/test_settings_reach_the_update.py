"""Every setting of the Learner changes what an update does, and nothing else may.

Formulas have tests of their own; these see whether a setting gets to them.
"""

import copy
import inspect

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from tests.algorithms.conftest import LORA, SPACES, random_episodes

BASE = {
    "old_logprob_source": "current_recompute",
    "eps_ti": 1.5,
    "eps_stale": 1.2,
    "discrepancy_weight": "ratio",
    "minibatch_size": 2,
    "lr": 1e-3,
    "max_staleness": 4,
}
EWMA = {"old_logprob_source": "ppo_ewma_async"}
KL = {"kl_coeff": 5.0}
GAE = {"advantage_estimator": "gae"}
#: Lest all tokens of later updates are masked.
SMALL_STEPS = {"lr": 1e-4}
LIKE_SGD = {"lr": 1.0, "optimizer": {"eps": 1.0}}
#: Setting -> what it needs beside it, and two values that have to make a difference.
ROWS = {
    "eps_ti": ({}, 1.02, 1.5),
    "eps_stale": (SMALL_STEPS, 1.01, 1.5),
    "eps_stale_low": (SMALL_STEPS, 1.01, 1.5),
    "dual_clip": ({}, None, 1.01),
    "ratio_level": ({}, "token", "sequence"),
    "mask_level": ({"eps_ti": 1.03}, None, "sequence"),
    "discrepancy_weight": ({}, "ratio", "none"),
    "is_cap": ({}, None, 1.01),
    "prox_alpha": ({"old_logprob_source": "linear_prox"}, 0.2, 0.8),
    "old_logprob_source": ({}, "current_recompute", "rollout"),
    "ewma_decay": ({**EWMA, **SMALL_STEPS}, "auto", 0.9),
    "ewma_reset_threshold": ({**EWMA, "eps_ti": 1.2, **SMALL_STEPS}, 0.0, 1.0),
    "advantage_estimator": ({}, "group_relative", "rloo"),
    "gamma": (GAE, 0.5, 1.0),
    "lambda_": (GAE, 0.5, 1.0),
    "vf_loss_coeff": (GAE, 0.1, 1.0),
    "loss_normalizer": ({}, "tokens", "sequences"),
    "kl_coeff": ({}, 0.0, 5.0),
    "kl_estimator": (KL, "k3", "unbiased"),
    "temperature": ({}, 1.0, 0.98),
    "lora": ({}, None, LORA),
    "compute_dtype": ({}, None, "bfloat16"),
    "max_staleness": (SMALL_STEPS, 0, 4),
    "minibatch_size": ({}, 2, 4),
    "num_epochs": ({}, 1, 2),
    "shuffle_batch_per_epoch": ({}, True, False),
    "lr": ({}, 3e-4, 1e-3),
    "grad_clip": (LIKE_SGD, 1e-3, None),
    "grad_clip_by": ({**LIKE_SGD, "grad_clip": 1e-3}, "global_norm", "value"),
    "optimizer": ({}, {}, {"weight_decay": 0.5}),
}
#: Settings that act elsewhere, or must not change an update: where that is tested.
ELSEWHERE = {
    "model": "tests/models",
    "trust_remote_code": "tests/models/test_trust_remote_code.py",
    "lora_sync": "test_weight_publisher.py, tests/engine/test_adapters.py",
    "gradient_checkpointing": "test_learner.py, memory alone",
    "attn_implementation": "tests/models/test_attention.py, memory and time alone",
    "router_replay": "tests/models/test_router_replay.py, mixtures alone",
    "micro_batch_tokens": "below, nothing changes",
    "logits_memory_bytes": "tests/core/test_logprobs.py, memory alone",
    "learner_sharding": "test_sharding.py, memory alone",
    "optimizer_offload": "test_optimizer_offload.py, memory alone",
    "weight_transport": "tests/transport, tests/settings/test_transport.py",
    "engine": "tests/env_runners, tests/settings",
    "chat_template_kwargs": "tests/chat",
    "tool_parser": "tests/chat",
    "reasoning_parser": "tests/chat",
    "max_response_tokens": "tests/env_runners",
    "kl_reference": "one value only",
    "compare_sources": "test_learner.py, nothing changes",
    "old_logit_model": "tests/end_to_end/test_exact_routes.py",
    "snapshot_memory_bytes": "tests/old_logprobs/test_sources.py",
    "missing_snapshot": "tests/old_logprobs/test_sources.py",
    "group_size": "tests/end_to_end/test_async_loop.py",
    "drop_uniform_groups": "test_signal.py",
    "episodes_per_update": "below",
    "num_concurrent_episodes": "tests/env_runners",
    "num_engines_per_env_runner": "tests/engine/test_engines.py",
    "turn_timeout_s": "tests/env_runners/test_one_episode.py",
    "episode_timeout_s": "tests/env_runners/test_one_episode.py",
    "engine_timeout_s": "tests/end_to_end/test_engine_replaced.py",
}


def test_no_setting_is_left_out():
    own = set(inspect.signature(AsyncDecoupledPPOConfig.training).parameters)
    known = set(ROWS) | set(ELSEWHERE)
    assert own - {"self", "kwargs"} <= known
    assert not set(ROWS) & set(ELSEWHERE)


@pytest.fixture(scope="module")
def batches():
    """Three updates' episodes, mu a little off what the small agent itself says."""
    learner = build({})
    rng = np.random.default_rng(0)
    result = []
    for versions in ([0], [0, 1], [0, 1, 2]):
        episodes = random_episodes(rng, versions, max_turn_tokens=25)
        batch = learner._build_batch(TrainingData(episodes=episodes))
        logp = learner._forward(batch, None)
        for number, episode in enumerate(episodes):
            own = batch[columns.LOSS_MASK] & (batch[columns.SEQUENCE_IDS] == number)
            values = logp[own].numpy() + rng.normal(0, 0.05, int(own.sum()))
            for turn in episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data:
                turn[:], values = (
                    np.minimum(values[: len(turn)], 0),
                    values[len(turn) :],
                )
        result.append(episodes)
    return result


def build(settings):
    torch.manual_seed(0)  # of adapters and value heads
    settings = dict(settings)
    seed = settings.pop("seed", 0)
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .training(
            episodes_per_update=8,
            group_size=4,
            engine={"dtype": "float32"},
            **{**BASE, **settings},
        )
        .debugging(seed=seed)
    )
    config.validate()
    return config.build_learner(spaces=SPACES)


def train(settings, batches):
    """Weights after the updates, as one vector."""
    learner = build(settings)
    config = learner.config
    for episodes in batches:
        learner.update(
            training_data=TrainingData(episodes=copy.deepcopy(episodes)),
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
        )
    assert learner._version, "no update had a signal"
    return torch.cat([w.flatten() for _, w in learner._policy.inference_weights()])


@pytest.fixture(scope="module")
def trained(batches):
    """`train`, each combination of settings once."""
    done = {}

    def run(settings):
        key = repr(sorted(settings.items(), key=str))
        if key not in done:
            done[key] = train(settings, batches)
        return done[key]

    return run


@pytest.mark.parametrize("setting", ROWS)
def test_a_setting_changes_the_weights(setting, trained):
    beside, one, other = ROWS[setting]
    left, right = (trained({**beside, setting: value}) for value in (one, other))
    assert left.isfinite().all() and right.isfinite().all()
    # Far above what another order of the same additions gives (below).
    assert (left - right).abs().max() > 1e-5, setting


def test_the_same_settings_give_the_same_weights(batches, trained):
    assert torch.equal(train({}, batches), trained({}))


@pytest.mark.parametrize("tokens", [64, 300])
def test_micro_batches_do_not_change_the_weights(tokens, trained):
    # Adam's first steps have the sign of the gradient: noise shows where it is 0.
    base = {"optimizer": {"eps": 1e-2}}
    left, right = trained(base), trained({**base, "micro_batch_tokens": tokens})
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_each_update_and_each_seed_has_an_order_of_its_own(batches, monkeypatch):
    from rllib_llm_async.algorithms.async_decoupled_ppo.torch import (
        async_decoupled_ppo_torch_learner as module,
    )

    seeds, real = [], module.minibatches

    def spy(batch, *, shuffle_seed, **kwargs):
        seeds.append(shuffle_seed)
        return real(batch, shuffle_seed=shuffle_seed, **kwargs)

    monkeypatch.setattr(module, "minibatches", spy)
    for seed in (0, 1):
        train({"seed": seed}, batches)
    assert len(set(seeds)) == len(seeds) == 6


def test_the_learning_rate_is_the_length_of_adams_first_step(batches):
    """One step from zero momentum moves a weight by lr, where its gradient is not 0."""
    learner = build({"lr": 1e-3, "grad_clip": None})
    before = [p.detach().clone() for p in learner._policy.parameters()]
    learner.update(training_data=TrainingData(episodes=copy.deepcopy(batches[0])))
    moved = torch.cat(
        [
            (p - b).abs().flatten()
            for p, b in zip(learner._policy.parameters(), before, strict=True)
        ]
    )
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-2)


def test_sources_see_mask_share_and_width_of_each_update(batches):
    learner = build({**EWMA, "eps_ti": 1.03, "lr": 1e-5})
    seen = []
    learner._source.observe = lambda **kwargs: seen.append(kwargs)
    for episodes in batches:
        results = learner.update(
            training_data=TrainingData(episodes=copy.deepcopy(episodes))
        )[DEFAULT_MODULE_ID]
        share = results["train_infer_mask"].peek()
        assert 0.05 < share < 0.95
        assert seen[-1]["mask_share"] == pytest.approx(share, rel=1e-5)
    # Versions 0; 0 and 1; 0 to 2, at updates 0, 1 and 2.
    assert [s["staleness_width"] for s in seen] == [0.0, 1.0, 2.0]
