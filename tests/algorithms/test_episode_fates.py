"""What a Learner tells the ledger: every episode of its share, once, and the truth."""

import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.coordination.ledger import EpisodeFate, Ledger, LedgerEpisode
from tests.algorithms.conftest import Publisher
from tests.algorithms.test_learner import huggingface_logp, saved_weights

EPS_TI = 3.0


def update(learner, episodes, **settings):
    """Results of one update, and the fates that it told, by key."""
    learner._publisher = Publisher()
    results = learner.update(training_data=TrainingData(episodes=episodes), **settings)
    (fates,) = learner._publisher.settled
    assert len({(fate.group, fate.key) for fate in fates}) == len(fates)
    return results[DEFAULT_MODULE_ID], {fate.key: fate for fate in fates}


def num_tokens(episode):
    return sum(len(action) for action in episode.actions.data)


def key_of(episode):
    return episode.custom_data[columns.EPISODE_KEY]


def near_the_policy(weights, episodes):
    """Gives them a mu that differs from pi by episode, by turn and by token."""
    rng = np.random.default_rng(1)
    for episode in episodes:
        logp, start, of_episode = huggingface_logp(weights, episode), 0, rng.normal()
        for turn in episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data:
            noise = of_episode + rng.normal() + rng.normal(size=len(turn))
            turn[:] = logp[start : start + len(turn)] + noise
            start += len(turn)
    return episodes


def kept_by_hand(weights, episode, level):
    """Tokens of an episode within [1/eps, eps], the geometric mean of a unit."""
    turns = episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data
    log_r_d = huggingface_logp(weights, episode) - np.concatenate(turns)
    lengths = {
        "token": [1] * len(log_r_d),
        "turn": [len(turn) for turn in turns],
        "sequence": [len(log_r_d)],
    }[level]
    units = np.split(log_r_d, np.cumsum(lengths)[:-1])
    return sum(len(u) for u in units if abs(u.mean()) <= math.log(EPS_TI))


@pytest.mark.parametrize("level", ["token", "turn", "sequence"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"minibatch_size": 2, "num_epochs": 2, "shuffle_batch_per_epoch": True},
        {"minibatch_size": 4, "micro_batch_tokens": 1},  # one row in each pass
    ],
    ids=["one step", "steps and epochs", "accumulation"],
)
def test_tokens_are_counted_once_as_the_mask_decided(
    make_learner, make_episodes, level, settings
):
    settings = dict(settings)
    learner = make_learner(
        old_logprob_source="current_recompute",
        eps_ti=EPS_TI,
        lr=1e-6,  # or the clip stops all of a small step, which then is none
        mask_level=level,
        micro_batch_tokens=settings.pop("micro_batch_tokens", 16384),
        minibatch_size=settings.get("minibatch_size"),
    )
    weights = saved_weights(learner)
    episodes = make_episodes(np.random.default_rng(0), [0])
    near_the_policy(weights, episodes)
    results, fates = update(learner, episodes, **settings)
    expected = {
        key_of(e): EpisodeFate(
            e.custom_data[columns.GROUP_ID],
            key_of(e),
            kept := kept_by_hand(weights, e, level),
            num_tokens(e) - kept,
        )
        for e in episodes
    }
    assert fates == expected
    shares = [fate.num_trained for fate in fates.values()]
    assert 0 < sum(shares) < sum(map(num_tokens, episodes))
    if not settings:
        kept = results[result_keys.TRAIN_INFER_MASK].peek()
        assert kept == pytest.approx(sum(shares) / sum(map(num_tokens, episodes)))


def test_every_reason_to_drop_an_episode_is_told(make_learner, make_episodes):
    learner = make_learner(
        old_logprob_source="snapshot_old", missing_snapshot="drop", max_staleness=2
    )
    rng = np.random.default_rng(0)
    for version in range(3):
        update(learner, make_episodes(rng, [version]))
    learner._source.store.evict_before(2)
    episodes = make_episodes(rng, [3], num_groups=4)
    episodes[0].extra_model_outputs[columns.EPISODE_VERSIONS].data[0][0] = 0
    episodes[1].extra_model_outputs[columns.EPISODE_VERSIONS].data[0][0] = 1
    episodes[4].rewards.data[-1] = math.nan
    episodes[9].extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data[0][0] = math.inf
    _, fates = update(learner, episodes)
    reasons = [fates[key_of(episode)].reason for episode in episodes]
    assert reasons == [
        *("stale", "unscored", None, None),
        *["bad_reward"] * 4,
        *["bad_logp"] * 4,
        *[None] * 4,
    ]
    for episode in episodes:
        fate = fates[key_of(episode)]
        told = fate.num_trained + fate.num_masked
        assert told == (0 if fate.reason else num_tokens(episode))


def test_a_step_that_is_skipped_drops_its_episodes_alone(make_learner, make_episodes):
    learner = make_learner(minibatch_size=4)
    real, losses = learner.compute_loss_for_module, []

    def nan_first(**kwargs):
        losses.append(real(**kwargs))
        return losses[-1] * (math.nan if len(losses) == 1 else 1.0)

    learner.compute_loss_for_module = nan_first
    episodes = make_episodes(np.random.default_rng(0), [0])
    _, fates = update(learner, episodes, minibatch_size=4)
    reasons = [fate.reason for fate in fates.values()]
    assert len(losses) == 2 and learner._version == 1
    assert sorted(map(str, reasons)) == ["None"] * 4 + ["not_finite"] * 4


def test_an_update_without_a_signal_has_masked_what_it_saw(make_learner, make_episodes):
    learner = make_learner()
    episodes = make_episodes(np.random.default_rng(0), [0])
    for episode in episodes:
        episode.rewards.data[-1] = 1.0
    results, fates = update(learner, episodes)
    assert results[result_keys.NUM_AGENT_TOKENS].peek() > 0
    assert [(f.num_trained, f.num_masked) for f in fates.values()] == [
        (0, num_tokens(episode)) for episode in episodes
    ]


@pytest.mark.parametrize("estimator", ["group_relative", "gae"])
@pytest.mark.parametrize("why", ["no episodes", "stale", "unscored", "bad_reward"])
def test_an_update_on_nothing_changes_nothing_and_says_so(
    make_learner, make_episodes, why, estimator
):
    """The schedule of the learning rate goes by environment steps: not by these."""
    learner = make_learner(
        old_logprob_source="ppo_ewma_async",
        ewma_reset_threshold=0.0,
        max_staleness=1,
        lr=[[0, 1e-3], [100, 1e-5]],
        advantage_estimator=estimator,
        optimizer={"weight_decay": 0.1},
    )
    rng = np.random.default_rng(0)
    for version in range(2):
        update(learner, make_episodes(rng, [version]), timesteps=steps(10))
    before = state_of(learner)
    episodes = make_episodes(rng, [0 if why == "stale" else 2])
    if why == "no episodes":
        episodes = []
    elif why == "unscored":
        learner._source.old_logp = lambda batch, *_: torch.full(
            batch[columns.LOSS_MASK].shape, math.nan
        )
    elif why == "bad_reward":
        for episode in episodes:
            episode.rewards.data[0] = math.inf
    results, fates = update(learner, episodes, timesteps=steps(50))
    assert results[result_keys.NUM_AGENT_TOKENS].peek() == 0
    assert learner._publisher.published == []
    assert {fate.reason for fate in fates.values()} == ({why} if episodes else set())
    assert len(fates) == len(episodes)
    assert state_of(learner) == before
    if why != "unscored":  # and the next update goes ahead
        results, _ = update(learner, make_episodes(rng, [2]), timesteps=steps(50))
        assert results[result_keys.NUM_AGENT_TOKENS].peek() > 0
        assert learner._publisher.published == [3]
        assert state_of(learner) != before


def steps(count):
    return {"num_env_steps_sampled_lifetime": count}


def state_of(learner):
    """Weights, optimizer, learning rate, average: as bytes, to be compared."""
    tensors = [*learner._policy.parameters(), *learner._source.ewma.parameters.values()]
    rates = []
    for optimizer in learner._named_optimizers.values():
        tensors += [t for s in optimizer.state.values() for t in s.values()]
        rates += [group["lr"] for group in optimizer.param_groups]
    return (
        [t.detach().numpy().tobytes() for t in tensors],
        [float(rate) for rate in rates],
        learner._source.ewma.total_weight,
        learner._version,
    )


def test_the_ledger_closes_on_what_learners_tell(make_learner, make_episodes):
    learner = make_learner(
        old_logprob_source="current_recompute", eps_ti=EPS_TI, max_staleness=1
    )
    ledger, rng = Ledger(), np.random.default_rng(0)
    for update_number in range(3):
        episodes = near_the_policy(
            saved_weights(learner),
            make_episodes(rng, [max(0, learner._version - update_number)]),
        )
        for number in range(2):
            ledger.start(number, 4, "airline")
            ledger.finish(
                number,
                [
                    LedgerEpisode(key_of(e), num_tokens(e), e.get_return(), "airline")
                    for e in episodes[4 * number : 4 * number + 4]
                ],
            )
        _, fates = update(learner, episodes)
        ledger.settle(fates.values())
        for number in range(2):
            ledger.close(number)
    metrics = ledger.metrics()
    assert metrics[result_keys.LEDGER_IDENTITY_ERROR] == 0
    assert metrics["ledger/episodes/dropped_stale"] == 8  # of the third update
    assert 8 < metrics["ledger/episodes/trained"] <= 16
    assert metrics["ledger/tokens/masked"] > 0
    assert metrics["ledger/episodes/in_flight"] == 0
    assert "ledger/episodes/dropped_lost" not in metrics
