"""What the engine reports reaches the episode, or is refused by the episode's name."""

import numpy as np
import pytest
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.module_to_env import AttachVersionedLogprobs
from rllib_llm_async.engine.vllm_engine import EngineOutput


def attach(logp, versions):
    output = EngineOutput(
        [7, 8, 9], np.array(logp, np.float32), np.array(versions), "stop"
    )
    episode = SingleAgentEpisode(id_="the-episode", len_lookback_buffer=0)
    return AttachVersionedLogprobs()(
        rl_module=None, batch={columns.ENGINE_OUTPUT: output}, episodes=[episode]
    )


def test_one_logp_and_one_version_per_token():
    batch = attach([-1.0, -0.5, 0.0], [3, 3, 4])
    assert batch[Columns.ACTIONS].tolist() == [7, 8, 9]
    assert batch[columns.EPISODE_BEHAVIOR_LOGP].tolist() == [-1.0, -0.5, 0.0]
    assert batch[columns.EPISODE_VERSIONS].tolist() == [3, 3, 4]


@pytest.mark.parametrize("bad", [np.nan, -np.inf, np.inf, 0.1])
def test_a_logp_that_is_none_names_the_episode(bad):
    with pytest.raises(ValueError, match=r"episode the-episode, turn 0: .*1 of 3"):
        attach([-1.0, bad, -1.0], [0, 0, 0])


def test_a_token_without_a_version_names_the_episode():
    with pytest.raises(ValueError, match=r"the-episode.*token 2 has .*version -1"):
        attach([-1.0, -1.0, -1.0], [0, 0, -1])


@pytest.mark.parametrize("told", [None, np.ones((5, 4, 2), np.uint8)])
@pytest.mark.parametrize("asked", [False, True])
def test_experts_are_there_if_asked_for_also_where_none_came(told, asked):
    logp, versions = np.array([-1.0], np.float32), np.array([0])
    output = EngineOutput([7], logp, versions, "stop", told)
    batch = AttachVersionedLogprobs(routed_experts=asked)(
        rl_module=None,
        batch={columns.ENGINE_OUTPUT: output},
        episodes=[SingleAgentEpisode(len_lookback_buffer=0)],
    )
    assert (columns.EPISODE_ROUTED_EXPERTS in batch) == asked
    if asked:
        length = 0 if told is None else 5
        assert len(batch[columns.EPISODE_ROUTED_EXPERTS]) == length
