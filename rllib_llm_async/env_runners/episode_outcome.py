"""How an episode ended: what is left of it when its tokens have gone elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.monitoring.dialogues import DialogueRecord


@dataclass(frozen=True)
class EpisodeOutcome:
    """What is left of a finished episode when its tokens have gone elsewhere."""

    task: TaskRef
    #: Its `columns.EPISODE_KEY`.
    key: int
    domain: str
    success: bool
    episode_return: float
    num_turns: int
    num_tokens: int
    num_versions: int
    mean_version: float
    num_malformed_tool_calls: int
    reward_breakdown: dict[str, float | bool | None]
    reason: str

    @property
    def rubric_score(self) -> float:
        """Partial credit: the mean of the reward's parts, success where it has none.

        A part that is None was not judged.
        """
        parts = [part for part in self.reward_breakdown.values() if part is not None]
        return sum(parts) / len(parts) if parts else float(self.success)

    @classmethod
    def of(
        cls, task: TaskRef, episode: SingleAgentEpisode, info: dict[str, Any]
    ) -> EpisodeOutcome:
        """Reads it off the episode and the last ``info``, see `checked_step`."""
        versions = np.concatenate(
            episode.extra_model_outputs[columns.EPISODE_VERSIONS].data
        )
        return cls(
            task=task,
            key=episode.custom_data[columns.EPISODE_KEY],
            domain=info.get("domain", task.domain),
            success=info.get("success", False),
            episode_return=episode.get_return(),
            num_turns=len(episode),
            num_tokens=len(versions),
            num_versions=len(np.unique(versions)),
            mean_version=float(versions.mean()) if len(versions) else 0.0,
            num_malformed_tool_calls=info.get(result_keys.NUM_MALFORMED_TOOL_CALLS, 0),
            reward_breakdown=info.get("reward_breakdown", {}),
            reason=info.get("reason", ""),
        )


@dataclass
class Evaluated:
    """Episodes of an evaluation; ``dialogues`` of those that were asked for.

    ``num_env_failures`` counts further episodes whose environment kept failing.
    """

    outcomes: list[EpisodeOutcome] = field(default_factory=list)
    dialogues: list[DialogueRecord] = field(default_factory=list)
    num_env_failures: int = 0


def mean_results(outcomes: Iterable[EpisodeOutcome]) -> dict[str, float]:
    """Means over episodes under their result keys.

    Success also per domain, and the parts of the reward of each.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        values[result_keys.SUCCESS_RATE].append(outcome.success)
        values[f"{result_keys.SUCCESS_RATE}/{outcome.domain}"].append(outcome.success)
        values[result_keys.RUBRIC_SCORE].append(outcome.rubric_score)
        for check, value in outcome.reward_breakdown.items():
            if value is not None:
                values[f"{result_keys.CHECKS}/{outcome.domain}/{check}"].append(value)
        values[EPISODE_RETURN_MEAN].append(outcome.episode_return)
        values[EPISODE_LEN_MEAN].append(outcome.num_turns)
        values[result_keys.NUM_VERSIONS_PER_EPISODE].append(outcome.num_versions)
    return {key: float(np.mean(numbers)) for key, numbers in values.items()}
