"""Finished episodes as plain data: what comes back is what went in."""

import json
from dataclasses import replace

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
from rllib_llm_async.env_runners.saved_episodes import (
    episode_from_plain,
    episode_to_plain,
    outcome_from_plain,
    outcome_to_plain,
    transcript_of,
)
from rllib_llm_async.env_runners.transcript import sampled_under
from rllib_llm_async.envs.agent_env import TaskRef


def make_episode():
    episode = SingleAgentEpisode(len_lookback_buffer=0)
    keys = {columns.EPISODE_KEY: 2**61 + 1, columns.GROUP_ID: 7}
    episode.custom_data.update(keys)
    episode.add_env_reset(np.array([1, 2, 3]))
    for turn, versions in enumerate([[4, 4], [4, 5, 5]]):
        number = len(versions)
        episode.add_env_step(
            observation=np.array([9, 9] if turn == 0 else [], np.int64),
            action=np.arange(10, 10 + number),
            reward=0.25 * turn,
            truncated=turn == 1,
            extra_model_outputs={
                columns.EPISODE_BEHAVIOR_LOGP: -np.arange(number, dtype=np.float32),
                columns.EPISODE_VERSIONS: np.array(versions),
                columns.EPISODE_OLD_LOGP: -np.ones(number, np.float32) / 3,
            },
        )
    return episode


def test_an_episode_comes_back_as_it_was():
    episode = make_episode()
    plain = episode_to_plain(episode)
    json.dumps(plain, default=np.ndarray.tolist)  # raises on anything else
    again = episode_from_plain(plain)
    assert again.is_truncated and not again.is_terminated
    assert again.get_return() == episode.get_return() == 0.25
    assert again.custom_data == episode.custom_data
    packed, expected = (
        PackEpisodes(device="cpu")(
            rl_module=None, batch={}, episodes=[each], shared_data={}
        )["default_policy"]
        for each in (again, episode)
    )
    assert packed.keys() == expected.keys() >= {columns.SCORED_OLD_LOGP}
    for column in packed:
        assert packed[column].equal(expected[column]), column


def test_the_transcript_of_a_finished_episode_gives_its_tokens_of_a_version():
    transcript = transcript_of(make_episode())
    (sampled,) = sampled_under(5, {transcript.key: transcript})
    assert sampled[columns.TOKENS].tolist() == [1, 2, 3, 10, 11, 9, 9, 10, 11, 12]
    assert sampled[columns.LOSS_MASK].nonzero()[0].tolist() == [8, 9]
    assert sampled_under(3, {transcript.key: transcript}) == []


def test_an_outcome_comes_back_as_it_was():
    info = {"success": True, "reward_breakdown": {"state": 1.0, "policy": None}}
    outcome = EpisodeOutcome.of(TaskRef("shop", "a/1", "train"), make_episode(), info)
    plain = outcome_to_plain(outcome)
    json.dumps(plain)
    assert outcome_from_plain(plain) == outcome
    assert outcome_from_plain(plain) != replace(outcome, num_turns=3)
