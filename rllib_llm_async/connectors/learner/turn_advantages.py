"""Advantages from a value head, one environment step (agent turn) at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.micro_batches import in_row_order


class TurnAdvantages(ConnectorV2):
    """Generalised advantage estimation (arXiv 1506.02438) over agent turns.

    The value of a turn is the value head's at its first token, before the agent says
    anything. All tokens of a turn share its advantage. The Learner standardises it,
    over the turns that all learners train on: this connector sees those of one alone.
    An episode that was truncated counts as ended: what would have followed is not
    part of it. Place it after `PackEpisodes`.

    Args:
        gamma: Discount from one turn to the next.
        lambda_: Decay of the estimator's traces.
        micro_batch_tokens: Tokens in one pass of the value function.
    """

    def __init__(
        self,
        input_observation_space=None,
        input_action_space=None,
        *,
        gamma: float,
        lambda_: float,
        micro_batch_tokens: int,
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self.gamma = gamma
        self.lambda_ = lambda_
        self.micro_batch_tokens = micro_batch_tokens

    @override(ConnectorV2)
    def __call__(
        self, *, rl_module, batch, episodes, explore=None, shared_data=None, **kwargs
    ) -> dict[str, Any]:
        packed = batch[DEFAULT_MODULE_ID]
        policy = rl_module[DEFAULT_MODULE_ID].unwrapped().policy
        parts = list(policy.micro_batches(packed, self.micro_batch_tokens))
        with torch.no_grad():
            token_values = in_row_order(
                (rows, policy.values(part)) for rows, part in policy.in_step(parts)
            )
        mask, turn_ids = packed[columns.LOSS_MASK], packed[columns.TURN_IDS]
        is_first = mask & (turn_ids != turn_ids.roll(1, dims=1))
        turns = turn_ids[is_first]
        # A turn without a token has no value, and none of its own to learn.
        values = np.zeros(sum(len(episode) for episode in episodes), np.float32)
        values[turns.cpu().numpy()] = token_values[is_first].cpu().numpy()

        targets = self._value_targets(values, episodes)
        advantages = torch.from_numpy(targets - values).to(mask.device)
        packed[columns.ADVANTAGES][mask] = advantages[turn_ids[mask]]
        for key, of_turn in (
            (columns.VALUE_TARGETS, torch.from_numpy(targets).to(mask.device)),
            (
                columns.VALUE_WEIGHTS,
                torch.bincount(turn_ids[mask], minlength=len(values)).float(),
            ),
        ):
            column = torch.zeros(mask.shape, device=mask.device)
            column[is_first] = of_turn[turns]
            packed[key] = column
        return batch

    def _value_targets(
        self, values: np.ndarray, episodes: Sequence[SingleAgentEpisode]
    ) -> np.ndarray:
        """float32 ``[turns]`` from each turn's value, one episode after another."""
        if not episodes:
            return values
        rewards = np.concatenate([e.get_rewards() for e in episodes])
        ends = np.zeros(len(rewards), np.float32)
        ends[np.cumsum([len(episode) for episode in episodes]) - 1] = 1.0
        targets = compute_value_targets(
            values, rewards, ends, np.zeros_like(ends), self.gamma, self.lambda_
        )
        return targets.astype(np.float32)
