"""The episodes of an update: fetched, and whole groups left out that would spoil it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.coordination import ledger
from rllib_llm_async.envs.agent_env import is_reward

#: What an episode may earn, all rewards taken as positive: with more, the square of an
#: advantage or a gradient overflows in float32 and takes the whole update with it.
MAX_EARNED = 1e15


def fetch_episodes(
    training_data: TrainingData, group_size: int
) -> tuple[list[SingleAgentEpisode], int]:
    """Gets the episodes, of references whatever has not gone down with its node.

    Args:
        training_data: References to (or lists of) whole groups of episodes.
        group_size: Episodes behind one reference.

    Returns:
        Episodes, and how many were lost.
    """
    if training_data.episodes_refs is None:
        training_data.solve_refs()
        return list(training_data.episodes or ()), 0
    episodes: list[SingleAgentEpisode] = []
    num_lost = 0
    for reference in training_data.episodes_refs:
        try:
            episodes += ray.get(reference)
        except ObjectLostError:
            num_lost += group_size
    return episodes, num_lost


def usable_groups(
    episodes: Sequence[SingleAgentEpisode],
) -> tuple[list[SingleAgentEpisode], dict[str, list[SingleAgentEpisode]]]:
    """Leaves out the groups of episodes with a value that cannot be trained on.

    One reward that is no finite number (or beyond `MAX_EARNED`) would make the
    advantages of its whole group NaN, and one such token the gradient of the update.

    Returns:
        The other episodes, in their order, and those left out by reason.
    """
    bad_groups: dict[Any, str] = {}
    for episode in episodes:
        reason = _defect(episode)
        if reason is not None:
            bad_groups.setdefault(episode.custom_data[columns.GROUP_ID], reason)
    kept = []
    left_out: dict[str, list[SingleAgentEpisode]] = defaultdict(list)
    for episode in episodes:
        reason = bad_groups.get(episode.custom_data[columns.GROUP_ID])
        if reason is None:
            kept.append(episode)
        else:
            left_out[reason].append(episode)
    return kept, left_out


def _defect(episode: SingleAgentEpisode) -> str | None:
    """The reason for which the episode's group is left out; None if it is fine."""
    rewards = episode.rewards.data
    if not all(is_reward(reward) for reward in rewards) or (
        sum(abs(float(reward)) for reward in rewards) > MAX_EARNED
    ):
        return ledger.BAD_REWARD
    behavior = episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data
    if not all(_is_finite(turn) for turn in behavior):
        return ledger.BAD_LOGP
    return None


def _is_finite(logp: Any) -> bool:
    """Whether all elements are finite numbers in float32, in which they train."""
    try:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.asarray(logp, np.float32)).all())
    except (TypeError, ValueError):
        return False
