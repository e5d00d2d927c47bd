"""What an update made of each episode of one learner's share, for the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import Step
from rllib_llm_async.batch import columns
from rllib_llm_async.coordination.ledger import NOT_FINITE, EpisodeFate


class EpisodeFates:
    """Notes, while an update goes on, what becomes of its episodes.

    Tokens are counted once, in the first epoch: those that the Train-Infer mask let
    into a step that was taken are trained on, all others are masked: those of a step
    without a gradient, too.

    Args:
        episodes: In the order of their `SEQUENCE_IDS`.
        left_out: By reason, those that were not packed.
        device: Of the batch.
    """

    def __init__(
        self,
        episodes: Sequence[SingleAgentEpisode],
        left_out: Mapping[str, Sequence[SingleAgentEpisode]],
        device: torch.device | None,
    ) -> None:
        self._episodes = episodes
        self._left_out = left_out
        self._kept = torch.zeros(len(episodes), dtype=torch.int64, device=device)
        self._reasons: dict[int, str] = {}

    def drop(self, sequences: Tensor, reason: str) -> None:
        """Episodes are dropped; int64 `SEQUENCE_IDS` of them, each once."""
        self._reasons |= dict.fromkeys(sequences.tolist(), reason)

    def see_step(self, minibatch: Mapping[str, Tensor], step: Step) -> None:
        """Sees what became of a minibatch of the first epoch."""
        sequences = minibatch[columns.SEQUENCE_IDS]
        if step is Step.TAKEN:
            self._kept += torch.bincount(
                sequences[minibatch[columns.KEPT]], minlength=len(self._kept)
            )
        elif step is Step.NOT_FINITE:
            self.drop(sequences[minibatch[columns.LOSS_MASK]].unique(), NOT_FINITE)

    def settled(self) -> list[EpisodeFate]:
        """One of each episode, to be told when the last step is done."""
        fates = [
            _dropped(episode, reason)
            for reason, episodes in self._left_out.items()
            for episode in episodes
        ]
        for number, (episode, kept) in enumerate(
            zip(self._episodes, self._kept.tolist(), strict=True)
        ):
            if number in self._reasons:
                fates.append(_dropped(episode, self._reasons[number]))
                continue
            num_tokens = sum(len(action) for action in episode.actions.data)
            fates.append(EpisodeFate(*_name(episode), kept, num_tokens - kept))
        return fates


def _dropped(episode: SingleAgentEpisode, reason: str) -> EpisodeFate:
    return EpisodeFate(*_name(episode), reason=reason)


def _name(episode: SingleAgentEpisode) -> tuple[int, int]:
    """Its group and key, by which the ledger knows it."""
    data = episode.custom_data
    return data[columns.GROUP_ID], data[columns.EPISODE_KEY]
