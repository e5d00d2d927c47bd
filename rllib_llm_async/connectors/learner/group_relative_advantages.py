"""Group-relative advantages: an episode's return against its group's."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.utils.annotations import override

from rllib_llm_async import columns

#: shared_data key: float32 ``[episodes]``, one advantage per episode.
EPISODE_ADVANTAGES = "episode_advantages"


class GroupRelativeAdvantages(ConnectorV2):
    """Puts one advantage per episode into ``shared_data``.

    ``A = (R - mean(group)) / (std(group) + 1e-6)`` over the episodes of a group,
    which share a task (arXiv 2402.03300, section 4.1.1). A group with equal returns
    gives zeros. Place it before `PackEpisodes`; every group must be whole.
    """

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data, **kwargs
    ) -> dict[str, Any]:
        _, group_of_episode = np.unique(
            [episode.custom_data[columns.GROUP_ID] for episode in episodes],
            return_inverse=True,
        )
        returns = np.array([episode.get_return() for episode in episodes])
        size = np.bincount(group_of_episode)
        mean = np.bincount(group_of_episode, returns) / size
        centred = returns - mean[group_of_episode]
        std = np.sqrt(np.bincount(group_of_episode, centred**2) / size)
        shared_data[EPISODE_ADVANTAGES] = (
            centred / (std[group_of_episode] + 1e-6)
        ).astype(np.float32)
        return batch
