"""Episodes to a row-packed token batch: several whole sequences in each row."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import experts_of_tokens, pack_rows
from rllib_llm_async.connectors.learner.group_advantages import EPISODE_ADVANTAGES


class PackEpisodes(ConnectorV2):
    """Builds the columns of `rllib_llm_async.batch.columns` as tensors on ``device``.

    Takes one advantage per episode from ``shared_data``, 0 without. Sequences are
    placed first-fit by falling length into rows of the longest sequence's length, or of
    ``min_row_tokens`` if that is longer.
    """

    def __init__(
        self,
        input_observation_space=None,
        input_action_space=None,
        *,
        min_row_tokens: int = 512,
        device: Any = None,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.min_row_tokens = min_row_tokens
        self.device = device

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data, **kwargs
    ) -> dict[str, Any]:
        sequences = []
        first_turn = 0
        advantages = shared_data.get(EPISODE_ADVANTAGES, np.zeros(len(episodes)))
        for number, (episode, advantage) in enumerate(
            zip(episodes, advantages, strict=True)
        ):
            sequence = sequence_columns(episode, first_turn_id=first_turn)
            length = len(sequence[columns.TOKENS])
            sequence[columns.ADVANTAGES] = np.full(length, advantage, np.float32)
            sequence[columns.SEQUENCE_IDS] = np.full(length, number, np.int64)
            if columns.EPISODE_KEY in episode.custom_data:
                sequence[columns.EPISODE_KEYS] = np.full(
                    length, episode.custom_data[columns.EPISODE_KEY], np.int64
                )
            first_turn += len(episode)
            sequences.append(sequence)
        packed = pack_rows(sequences, min_row_tokens=self.min_row_tokens)
        return {
            DEFAULT_MODULE_ID: {
                key: torch.from_numpy(value).to(self.device)
                for key, value in packed.items()
            }
        }


def sequence_columns(
    episode: SingleAgentEpisode, first_turn_id: int
) -> dict[str, np.ndarray]:
    """One episode as token columns, observation and action tokens interleaved.

    The observation after the last action is left out: nothing is predicted from it.
    """
    joined = _token_columns(episode, first_turn_id)
    routed = episode.extra_model_outputs.get(columns.EPISODE_ROUTED_EXPERTS)
    if routed is not None and any(map(len, routed.data)):
        joined[columns.ROUTED_EXPERTS] = experts_of_tokens(
            routed.data, len(joined[columns.TOKENS])
        )
    return joined


def _token_columns(
    episode: SingleAgentEpisode, first_turn_id: int
) -> dict[str, np.ndarray]:
    """Those of shape ``[tokens]``."""
    observations = episode.observations.data
    actions = episode.actions.data
    logp = episode.extra_model_outputs[columns.EPISODE_BEHAVIOR_LOGP].data
    versions = episode.extra_model_outputs[columns.EPISODE_VERSIONS].data
    scored = episode.extra_model_outputs.get(columns.EPISODE_OLD_LOGP)
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for turn, (observation, action) in enumerate(
        zip(observations[:-1], actions, strict=True)
    ):
        seen, said = len(observation), len(action)
        parts[columns.TOKENS] += [observation, action]
        parts[columns.LOSS_MASK] += [np.zeros(seen, bool), np.ones(said, bool)]
        parts[columns.BEHAVIOR_LOGP] += [np.zeros(seen, np.float32), logp[turn]]
        parts[columns.VERSIONS] += [np.full(seen, -1, np.int64), versions[turn]]
        parts[columns.TURN_IDS] += [
            np.full(seen, -1, np.int64),
            np.full(said, first_turn_id + turn, np.int64),
        ]
        if scored is not None:
            parts[columns.SCORED_OLD_LOGP] += [
                np.zeros(seen, np.float32),
                scored.data[turn],
            ]
    joined = {key: np.concatenate(arrays) for key, arrays in parts.items()}
    joined[columns.POSITION_IDS] = np.arange(len(joined[columns.TOKENS]))
    return joined
