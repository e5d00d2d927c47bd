"""What a checkpoint holds of the loop: counters, finished groups, half-generated ones.

The episodes of finished groups come into the driver's process here, and nowhere else:
a checkpoint is written by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.exceptions import RayError

from rllib_llm_async.coordination.messages import FinishedGroup
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.env_runners.saved_episodes import (
    episode_from_plain,
    episode_to_plain,
    outcome_from_plain,
    outcome_to_plain,
    transcript_of,
)
from rllib_llm_async.env_runners.transcript import sampled_under

#: Component of the checkpoint.
COORDINATION = "coordination"


def get_coordination_state(coordinator: ray.actor.ActorHandle) -> dict[str, Any]:
    """The state under `COORDINATION`: numbers, strings, lists, dicts and arrays.

    Waits for the scores of `old_logit_model`. Groups that have gone down with their
    node are left out.

    Raises:
        ActorDiedError: If the coordinator has died.
    """
    state = ray.get(coordinator.get_state.remote())
    finished = [_to_plain(group, version) for group, version in state["finished"]]
    return {
        **state,
        "outcomes": [outcome_to_plain(outcome) for outcome in state["outcomes"]],
        "finished": [plain for plain in finished if plain is not None],
        "under_way": [list(group) for group in state["under_way"]],
    }


def set_coordination_state(
    coordinator: ray.actor.ActorHandle, plain: Mapping[str, Any]
) -> None:
    """Restores it; the episodes belong to this process then."""
    finished = []
    transcripts = {}
    for group in plain["finished"]:
        episodes = [episode_from_plain(episode) for episode in group["episodes"]]
        outcomes = [outcome_from_plain(outcome) for outcome in group["outcomes"]]
        restored = FinishedGroup(Ticket(**group["ticket"]), outcomes)
        restored = replace(restored, episodes=ray.put(episodes))
        finished.append((restored, group["finished_at_version"]))
        for outcome, episode in zip(outcomes, episodes, strict=True):
            transcripts[outcome.key] = transcript_of(episode)
    state = {
        **plain,
        "outcomes": [outcome_from_plain(outcome) for outcome in plain["outcomes"]],
        "finished": finished,
    }
    sampled = ray.put(sampled_under(plain["version"], transcripts))
    ray.get(coordinator.set_state.remote(state, [sampled]))


def _to_plain(group: FinishedGroup, version: int) -> dict[str, Any] | None:
    try:
        episodes = ray.get(group.episodes)
    except RayError:
        return None
    return {
        "ticket": asdict(group.ticket),
        "finished_at_version": version,
        "outcomes": [outcome_to_plain(outcome) for outcome in group.outcomes],
        "episodes": [episode_to_plain(episode) for episode in episodes],
    }
