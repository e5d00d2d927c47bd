"""An update without a signal changes nothing; one bad value costs its group alone."""

import copy
import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.train_episodes import (
    usable_groups,
)
from rllib_llm_async.batch import columns

EWMA = {"old_logprob_source": "ppo_ewma_async", "ewma_reset_threshold": 0.0}


def weights(learner):
    parameters = learner.module[DEFAULT_MODULE_ID].parameters()
    return torch.cat([p.detach().flatten() for p in parameters])


def average(learner):
    tensors = learner._source.ewma.parameters.values()
    return torch.cat([t.flatten() for t in tensors]), learner._source.ewma.total_weight


def update(learner, episodes):
    data = TrainingData(episodes=copy.deepcopy(episodes))
    return learner.update(training_data=data)[DEFAULT_MODULE_ID]


def all_earn(reward):
    def change(episodes):
        for episode in episodes:
            episode.rewards.data[:] = [0.0] * (len(episode) - 1) + [reward]

    return change


def out_of_the_mask(episodes):
    for episode in episodes:
        for turn in episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data:
            turn[:] = -60.0


@pytest.mark.parametrize(
    "change",
    [all_earn(0.0), all_earn(1.0), all_earn(0.1), out_of_the_mask],
    ids=["all 0", "all 1", "all 0.1", "all masked"],
)
@pytest.mark.parametrize("estimator", ["group_relative", "rloo"])
def test_without_a_signal_nothing_moves(make_learner, make_episodes, change, estimator):
    """Momentum and weight decay of earlier updates would, and a version with them."""
    rng = np.random.default_rng(0)
    learner = make_learner(
        **EWMA, advantage_estimator=estimator, optimizer={"weight_decay": 0.1}
    )
    for version in range(2):
        update(learner, make_episodes(rng, [version]))
    episodes = make_episodes(rng, [2])
    change(episodes)
    before, mean = weights(learner), average(learner)
    results = update(learner, episodes)
    assert learner._version == 2
    assert torch.equal(weights(learner), before)
    assert torch.equal(average(learner)[0], mean[0]) and average(learner)[1] == mean[1]
    assert results[result_keys.HAD_SIGNAL].peek() == 0
    assert results[result_keys.NUM_UPDATES_WITHOUT_SIGNAL].peek() == 1
    assert results[result_keys.NUM_STEPS_WITHOUT_SIGNAL].peek() == 1
    results = update(learner, make_episodes(rng, [2]))
    assert learner._version == 3 and results[result_keys.HAD_SIGNAL].peek() == 1


@pytest.mark.parametrize(
    "settings", [{"kl_coeff": 1.0}, {"advantage_estimator": "gae"}], ids=["kl", "value"]
)
def test_a_penalty_and_a_value_head_are_signals_of_their_own(
    make_learner, make_episodes, settings
):
    rng = np.random.default_rng(0)
    learner = make_learner(**settings, old_logprob_source="current_recompute")
    update(learner, make_episodes(rng, [0]))
    episodes = make_episodes(rng, [1])
    all_earn(1.0)(episodes)
    update(learner, episodes)
    assert learner._version == 2


def test_an_ewma_that_masks_everything_does_not_stop_learning_for_good(
    make_learner, make_episodes
):
    """Its reset waits for a version, which waits for a token that is kept."""
    rng = np.random.default_rng(0)
    learner = make_learner(
        old_logprob_source="ppo_ewma_async", eps_ti=1.5, lr=1e-6, max_staleness=99
    )
    episodes = make_episodes(rng, [0])
    batch = learner._build_batch(TrainingData(episodes=episodes))
    logp = learner._forward(batch, None)
    for number, episode in enumerate(episodes):  # mu is what pi says
        own = logp[batch[columns.LOSS_MASK] & (batch[columns.SEQUENCE_IDS] == number)]
        for turn in episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data:
            turn[:], own = own[: len(turn)].numpy(), own[len(turn) :]
    for tensor in learner._source.ewma.parameters.values():  # ... and the EWMA is not
        tensor.add_(torch.randn(tensor.shape, generator=torch.manual_seed(0)))
    update(learner, episodes)
    assert learner._version == 0
    update(learner, episodes)
    assert learner._version == 1 and learner._source.ewma.total_weight == 1.0


def spoil_reward(value):
    def change(episode):
        episode.rewards.data[-1] = value

    return change


def spoil_logp(value):
    def change(episode):
        episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data[0][0] = value

    return change


def spoil_all_logps(value):
    def change(episode):
        turns = episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data
        turns[:] = [value * len(turn) for turn in turns]

    return change


@pytest.mark.parametrize(
    ("change", "counter"),
    [
        (spoil_reward(math.nan), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward(-math.inf), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward(None), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward("1"), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward(10**400), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward(1e39), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_reward(np.ones(1)), result_keys.NUM_EPISODES_DROPPED_BAD_REWARD),
        (spoil_logp(math.nan), result_keys.NUM_EPISODES_DROPPED_BAD_LOGP),
        (spoil_logp(math.inf), result_keys.NUM_EPISODES_DROPPED_BAD_LOGP),
        (spoil_all_logps([None]), result_keys.NUM_EPISODES_DROPPED_BAD_LOGP),
    ],
    ids=[
        *("nan", "inf", "none", "text", "too large", "beyond float32", "array"),
        *("nan mu", "inf mu", "none mu"),
    ],
)
@pytest.mark.parametrize("estimator", ["group_relative", "gae"])
def test_one_bad_value_costs_its_group(
    make_learner, make_episodes, change, counter, estimator
):
    """What is left trains as if the group had never been there."""
    episodes = make_episodes(np.random.default_rng(0), [0], num_groups=3)
    good = episodes[:4] + episodes[8:]
    change(episodes[6])
    ends = []
    for given in (good, episodes):
        torch.manual_seed(0)
        learner = make_learner(
            advantage_estimator=estimator, old_logprob_source="current_recompute"
        )
        results = update(learner, given)
        assert learner._version == 1
        ends.append(weights(learner))
    assert torch.equal(*ends)
    dropped = {
        key: results[key].peek()
        for key in (
            result_keys.NUM_EPISODES_DROPPED_BAD_REWARD,
            result_keys.NUM_EPISODES_DROPPED_BAD_LOGP,
        )
    }
    assert dropped == {**dict.fromkeys(dropped, 0), counter: 4}


def test_a_batch_of_bad_groups_alone_changes_nothing(make_learner, make_episodes):
    learner = make_learner()
    episodes = make_episodes(np.random.default_rng(0), [0])
    for episode in episodes[::4]:
        spoil_reward(math.nan)(episode)
    assert usable_groups(episodes)[0] == []
    before = weights(learner)
    update(learner, episodes)
    assert learner._version == 0 and torch.equal(weights(learner), before)


def test_rewards_that_overflow_together_are_bad_as_well(make_episodes):
    """Each of them is finite, their sum is not."""
    episodes = make_episodes(np.random.default_rng(0), [0], num_groups=2)
    long = next(episode for episode in episodes[4:] if len(episode) > 1)
    long.rewards.data[:] = [1e308] * len(long)
    kept, left_out = usable_groups(episodes)
    assert kept == episodes[:4]
    assert left_out == {"bad_reward": episodes[4:]}


@pytest.mark.parametrize("estimator", ["group_relative", "gae"])
def test_a_turn_without_tokens_trains_like_any_other(
    make_learner, make_episodes, estimator
):
    episodes = make_episodes(np.random.default_rng(0), [0])
    last = episodes[-1]
    last.actions.data[-1] = last.actions.data[-1][:0]
    for key in (columns.EPISODE_BEHAVIOR_LOGP, columns.EPISODE_VERSIONS):
        outputs = last.extra_model_outputs[key].data
        outputs[-1] = outputs[-1][:0]
    learner = make_learner(advantage_estimator=estimator)
    results = update(learner, episodes)
    assert learner._version == 1
    tokens = sum(len(turn) for e in episodes for turn in e.actions.data)
    assert results[result_keys.NUM_AGENT_TOKENS].peek() == tokens


def test_unscored_and_stale_tokens_drop_their_episodes(make_learner, make_episodes):
    """Episodes are counted, not tokens."""
    learner = make_learner(old_logprob_source="current_recompute", max_staleness=1)
    episodes = make_episodes(np.random.default_rng(1), [0])
    real = learner._source.old_logp

    def lose_some(batch, forward, version):
        old_logp = real(batch, forward, version)
        for number in (2, 5):
            own = batch[columns.LOSS_MASK] & (batch[columns.SEQUENCE_IDS] == number)
            assert own.sum() > 2
            old_logp[own] = math.nan
        return old_logp

    learner._source.old_logp = lose_some
    results = update(learner, episodes)
    assert results[result_keys.NUM_EPISODES_DROPPED_UNSCORED].peek() == 2
    kept = [e for n, e in enumerate(episodes) if n not in (2, 5)]
    tokens = sum(len(turn) for e in kept for turn in e.actions.data)
    assert results[result_keys.NUM_AGENT_TOKENS].peek() == tokens
