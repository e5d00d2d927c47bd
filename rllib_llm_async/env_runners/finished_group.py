"""What a runner hands out when all episodes of a task have ended."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from rllib_llm_async.connectors.learner.group_advantages import earn_the_same
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.env_runners.episodes import EpisodeOutcome


@dataclass(frozen=True)
class FinishedGroup:
    """A whole group, ready to be trained on; ``episodes`` is an object reference."""

    episodes: ray.ObjectRef
    outcomes: list[EpisodeOutcome]
    ticket: Ticket

    @property
    def is_uniform(self) -> bool:
        """Whether all episodes earned the same: relative to the group, nothing."""
        returns = [outcome.episode_return for outcome in self.outcomes]
        return bool(earn_the_same(min(returns), max(returns)))
