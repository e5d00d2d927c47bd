"""Finished episodes as plain data: what comes back is what went in."""

import json
from dataclasses import replace

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.connectors.learner.pack_episodes import sequence_columns
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
from rllib_llm_async.env_runners.replay import Replay, record_of
from rllib_llm_async.env_runners.saved_episodes import (
    episode_from_plain,
    episode_to_plain,
    outcome_from_plain,
    outcome_to_plain,
    transcript_of,
)
from rllib_llm_async.env_runners.transcript import Transcript, sampled_under
from rllib_llm_async.envs.agent_env import TaskRef


def make_episode(routed_experts=False):
    """One of 3 + 2 + 2 + 3 tokens; the last one has been seen by no pass."""
    routed = np.arange(9 * 2 * 2, dtype=np.uint8).reshape(9, 2, 2)
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
                **(
                    {columns.EPISODE_ROUTED_EXPERTS: (routed[:4], routed[4:])[turn]}
                    if routed_experts
                    else {}
                ),
            },
        )
    return episode


@pytest.mark.parametrize("routed_experts", [False, True])
def test_an_episode_comes_back_as_it_was(routed_experts):
    episode = make_episode(routed_experts)
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
    assert (columns.ROUTED_EXPERTS in packed) == routed_experts
    for column in packed:
        assert packed[column].equal(expected[column]), column


def test_the_transcript_of_a_finished_episode_gives_its_tokens_of_a_version():
    transcript = transcript_of(make_episode())
    (sampled,) = sampled_under(5, {transcript.key: transcript})
    assert sampled[columns.TOKENS].tolist() == [1, 2, 3, 10, 11, 9, 9, 10, 11, 12]
    assert sampled[columns.LOSS_MASK].nonzero()[0].tolist() == [8, 9]
    assert sampled_under(3, {transcript.key: transcript}) == []


def test_every_token_gets_its_experts_and_the_last_one_none():
    episode = make_episode(routed_experts=True)
    columns_of = sequence_columns(episode, first_turn_id=0)
    routed = columns_of[columns.ROUTED_EXPERTS]
    assert routed.dtype == np.int16 and len(columns_of[columns.TOKENS]) == 10
    assert routed[:9].flatten().tolist() == list(range(36))
    assert (routed[9] == -1).all()
    # What the learners score while it is under way.
    transcript = transcript_of(episode)
    (sampled,) = sampled_under(4, {transcript.key: transcript})
    end = len(sampled[columns.TOKENS])
    assert end == 8
    assert np.array_equal(sampled[columns.ROUTED_EXPERTS], routed[:end])


def test_an_outcome_comes_back_as_it_was():
    info = {"success": True, "reward_breakdown": {"state": 1.0, "policy": None}}
    outcome = EpisodeOutcome.of(TaskRef("shop", "a/1", "train"), make_episode(), info)
    plain = outcome_to_plain(outcome)
    json.dumps(plain)
    assert outcome_from_plain(plain) == outcome
    assert outcome_from_plain(plain) != replace(outcome, num_turns=3)


def test_a_checkpoint_of_an_episode_under_way_holds_its_experts():
    told = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    logp, versions = np.array([-1.0, -2.0], np.float32), np.array([4, 5])
    transcript, again = Transcript(5), Transcript(5)
    output = EngineOutput([7, 8], logp, versions, "stop", told)
    transcript.see([1, 2])
    transcript.say(output)
    transcript.turns.append(output)
    again.see([1, 2])
    Replay(record_of(transcript)).next_turn(again)
    assert again.num_routed == 3
    assert np.array_equal(again.routed[0], told)
