"""The actor behind `old_logit_model`: follows the versions and scores episodes.

It holds a model of its own and the training weights of the versions within the
staleness bound, taken from the coordinator in the order of their publication. A
restarted actor takes what the coordinator still refers to, so it catches up by itself.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.coordination.messages import FinishedGroup
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.old_logprobs.base import SourceSettings
from rllib_llm_async.old_logprobs.snapshot_old import SnapshotOld


class OldLogitActor:
    """Scores episodes under the training weights that sampled each token.

    Args:
        coordinator: The run's `Coordinator`.
        settings: The run's settings.
        model_config: As of `HFCausalLM`.
        micro_batch_tokens: Tokens in one forward pass.
    """

    def __init__(
        self,
        coordinator: ray.actor.ActorHandle,
        settings: SourceSettings,
        model_config: dict[str, Any],
        micro_batch_tokens: int,
    ) -> None:
        self._coordinator = coordinator
        self._settings = settings
        self._micro_batch_tokens = micro_batch_tokens
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._policy = CausalLMPolicy.from_config(model_config).to(self._device)
        self._snapshots = SnapshotOld(settings)
        self._serial = 0

    def score(self, episodes: list[SingleAgentEpisode]) -> list[SingleAgentEpisode]:
        """Returns the episodes with log pi_old in their ``extra_model_outputs``.

        Raises:
            MissingSnapshotError: If a token's version is beyond the staleness bound.
        """
        self._follow_versions()
        pack = PackEpisodes(device=self._device)
        batch = pack(rl_module=None, batch={}, episodes=episodes, shared_data={})[
            DEFAULT_MODULE_ID
        ]
        # No version is "the trainer's own" here: all are passes under snapshots.
        old_logp = self._snapshots.old_logp(batch, self._forward, version=-1)
        per_turn = _split_by_turn(
            old_logp[batch[columns.LOSS_MASK]].cpu().numpy(),
            batch[columns.TURN_IDS][batch[columns.LOSS_MASK]].cpu().numpy(),
            sum(len(episode) for episode in episodes),
        )
        first_turn = 0
        for episode in episodes:
            turns = per_turn[first_turn : first_turn + len(episode)]
            episode.extra_model_outputs[columns.EPISODE_OLD_LOGP] = (
                InfiniteLookbackBuffer(turns)
            )
            first_turn += len(episode)
        return episodes

    def forget(self) -> None:
        """Drops all versions, before a checkpoint is restored."""
        self._snapshots = SnapshotOld(self._settings)
        self._serial = 0

    def _follow_versions(self) -> None:
        published = ray.get(self._coordinator.trainer_weights.remote(self._serial))
        for serial, version, weights in published:
            self._snapshots.on_publish(version, ray.get(weights))
            self._serial = serial

    def _forward(self, batch, parameters):
        return self._policy.score(batch, parameters, self._micro_batch_tokens)


def _split_by_turn(
    values: np.ndarray, turn_ids: np.ndarray, num_turns: int
) -> list[np.ndarray]:
    """``[agent tokens]`` in any order of turns to one array per turn, by its number."""
    order = np.argsort(turn_ids, kind="stable")
    ends = np.cumsum(np.bincount(turn_ids, minlength=num_turns))
    return np.split(values[order], ends[:-1])


class OldLogitPool:
    """The actors of a run; Ray restarts them and repeats what they had to do.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        coordinator: The run's `Coordinator`.
    """

    def __init__(self, config, coordinator: ray.actor.ActorHandle) -> None:
        actor = ray.remote(max_restarts=-1, max_task_retries=-1)(OldLogitActor)
        self._actors = [
            actor.options(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"]).remote(
                coordinator,
                SourceSettings.from_config(config),
                config.get_default_rl_module_spec().model_config,
                config.micro_batch_tokens,
            )
            for bundle in config.old_logit_bundles
        ]
        self._turn = itertools.cycle(self._actors)

    def scored(self, group: FinishedGroup) -> FinishedGroup:
        """The group with a reference to its scored episodes; returns at once."""
        episodes = next(self._turn).score.remote(group.episodes)
        return replace(group, episodes=episodes)

    def forget(self) -> None:
        """See `OldLogitActor.forget`."""
        ray.get([actor.forget.remote() for actor in self._actors])

    def stop(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            ray.kill(actor)
