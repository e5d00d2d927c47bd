"""Advantages from groups of episodes that share a task: no value function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns

#: shared_data key: float32 ``[episodes]``, one advantage per episode.
EPISODE_ADVANTAGES = "episode_advantages"


class GroupRelativeAdvantages(ConnectorV2):
    """Puts one advantage per episode into ``shared_data``.

    ``A = (R - mean(group)) / (std(group) + 1e-6)`` over the episodes of a group,
    which share a task (arXiv 2402.03300, section 4.1.1). A group with equal returns
    gives exact zeros: no signal. Place it before `PackEpisodes`; every group must be
    whole.
    """

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data, **kwargs
    ) -> dict[str, Any]:
        centred, group, size = _centred_returns(episodes)
        std = np.sqrt(np.bincount(group, centred**2) / size)
        shared_data[EPISODE_ADVANTAGES] = (centred / (std[group] + 1e-6)).astype(
            np.float32
        )
        return batch


class LeaveOneOutAdvantages(ConnectorV2):
    """As `GroupRelativeAdvantages`, with the mean of the others for a baseline.

    ``A_i = R_i - mean_{j != i} R_j = (R_i - mean(group)) * n / (n - 1)`` (RLOO, arXiv
    2402.14740): unbiased, and not scaled by the group's spread.
    """

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data, **kwargs
    ) -> dict[str, Any]:
        centred, group, size = _centred_returns(episodes)
        scale = size / np.maximum(size - 1, 1)
        shared_data[EPISODE_ADVANTAGES] = (centred * scale[group]).astype(np.float32)
        return batch


def _centred_returns(
    episodes: Sequence[SingleAgentEpisode],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return minus its group's mean and group index, ``[episodes]``; group sizes.

    Where all returns of a group are the same the difference is exactly 0, see
    `earn_the_same`.
    """
    _, group = np.unique(
        [episode.custom_data[columns.GROUP_ID] for episode in episodes],
        return_inverse=True,
    )
    returns = np.array([episode.get_return() for episode in episodes], np.float64)
    size = np.bincount(group)
    mean = np.bincount(group, returns) / size
    highest, lowest = np.full(len(size), -np.inf), np.full(len(size), np.inf)
    np.maximum.at(highest, group, returns)
    np.minimum.at(lowest, group, returns)
    centred = np.where(
        earn_the_same(lowest, highest)[group], 0.0, returns - mean[group]
    )
    return centred, group, size


def earn_the_same(lowest: Any, highest: Any) -> Any:
    """Whether returns between these two are the same but for rounding, elementwise.

    0.1 + 0.2 is not 0.3, and 0.1 in float32 not 0.1: that is no signal, and an
    optimizer would scale it up to a full step.
    """
    return np.isclose(lowest, highest, rtol=1e-7, atol=1e-9)
