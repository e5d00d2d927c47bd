"""Group baselines against plain loops in float64."""

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import (
    GroupRelativeAdvantages,
    LeaveOneOutAdvantages,
)
from rllib_llm_async.connectors.learner.group_advantages import EPISODE_ADVANTAGES

GROUPS = [3, 8, 3, 8, 8, 3, 5, 5]  # groups lie mixed in a batch
RETURNS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.25, 1.0, 1.0]


def advantages(connector, groups=GROUPS, returns=RETURNS):
    episodes = []
    for group, reward in zip(groups, returns, strict=True):
        episode = SingleAgentEpisode(len_lookback_buffer=0)
        episode.custom_data[columns.GROUP_ID] = group
        episode.add_env_reset(np.zeros(2, np.int64))
        episode.add_env_step(np.zeros(0, np.int64), np.zeros(1, np.int64), reward)
        episodes.append(episode)
    shared_data = {}
    connector(rl_module=None, batch={}, episodes=episodes, shared_data=shared_data)
    return shared_data[EPISODE_ADVANTAGES]


def others(index):
    return [
        RETURNS[j]
        for j in range(len(GROUPS))
        if GROUPS[j] == GROUPS[index] and j != index
    ]


def test_leave_one_out_takes_the_mean_of_the_others():
    expected = [RETURNS[i] - np.mean(others(i)) for i in range(len(GROUPS))]
    assert advantages(LeaveOneOutAdvantages()) == pytest.approx(expected)


def test_group_relative_standardises_within_the_group():
    result = advantages(GroupRelativeAdvantages())
    for i in range(len(GROUPS)):
        group = [RETURNS[i], *others(i)]
        expected = (RETURNS[i] - np.mean(group)) / (np.std(group) + 1e-6)
        assert result[i] == pytest.approx(expected, abs=1e-6)
    assert result[6] == result[7] == 0  # equal returns


@pytest.mark.parametrize("connector", [GroupRelativeAdvantages, LeaveOneOutAdvantages])
@pytest.mark.parametrize(("size", "reward"), [(3, 0.1), (6, 0.1), (7, 0.3), (8, 1.0)])
def test_equal_returns_give_exact_zeros(connector, size, reward):
    """(0.1 + 0.1 + 0.1) / 3 is not 0.1, and an optimizer would scale the rest up."""
    groups = [1] * size + [2, 2]
    result = advantages(connector(), groups, [reward] * size + [0.0, 1.0])
    assert (result[:size] == 0.0).all() and (result[size:] != 0.0).all()


@pytest.mark.parametrize("connector", [GroupRelativeAdvantages, LeaveOneOutAdvantages])
@pytest.mark.parametrize(
    "same", [[0.1 + 0.2, 0.3], [0.1, float(np.float32(0.1))], [0.1 + 0.2 - 0.3, 0.0]]
)
def test_returns_equal_but_for_rounding_give_exact_zeros(connector, same):
    assert same[0] != same[1]
    result = advantages(connector(), [1, 1, 2, 2], [*same, 1.0, 1.001])
    assert (result[:2] == 0.0).all() and (result[2:] != 0.0).all()
