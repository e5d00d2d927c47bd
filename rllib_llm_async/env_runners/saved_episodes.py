"""Finished episodes as plain data and back, for a checkpoint that is read as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
from rllib_llm_async.env_runners.transcript import Transcript
from rllib_llm_async.envs.agent_env import TaskRef


def episode_to_plain(episode: SingleAgentEpisode) -> dict[str, Any]:
    """A finished episode: numbers, strings, lists, dicts and arrays.

    ``observations``: int64 tokens ``[new]``, one more than turns; ``actions`` and each
    of ``outputs`` (`columns.EPISODE_BEHAVIOR_LOGP` and others): ``[turn tokens]``.
    """
    return {
        "observations": [np.asarray(tokens) for tokens in episode.observations.data],
        "actions": [np.asarray(tokens) for tokens in episode.actions.data],
        "rewards": [float(reward) for reward in episode.rewards.data],
        "outputs": {
            column: [np.asarray(turn) for turn in turns.data]
            for column, turns in episode.extra_model_outputs.items()
        },
        "terminated": bool(episode.is_terminated),
        "truncated": bool(episode.is_truncated),
        "custom_data": dict(episode.custom_data),
    }


def episode_from_plain(plain: Mapping[str, Any]) -> SingleAgentEpisode:
    """The episode again."""
    episode = SingleAgentEpisode(len_lookback_buffer=0)
    episode.custom_data.update(plain["custom_data"])
    first, *others = plain["observations"]
    episode.add_env_reset(first)
    for turn, observation in enumerate(others):
        is_last = turn == len(others) - 1
        episode.add_env_step(
            observation=observation,
            action=plain["actions"][turn],
            reward=plain["rewards"][turn],
            terminated=is_last and plain["terminated"],
            truncated=is_last and plain["truncated"],
            extra_model_outputs={
                column: turns[turn] for column, turns in plain["outputs"].items()
            },
        )
    return episode


def outcome_to_plain(outcome: EpisodeOutcome) -> dict[str, Any]:
    """Its fields."""
    return asdict(outcome)


def outcome_from_plain(plain: Mapping[str, Any]) -> EpisodeOutcome:
    """The outcome again."""
    return EpisodeOutcome(**{**plain, "task": TaskRef(**plain["task"])})


def transcript_of(episode: SingleAgentEpisode) -> Transcript:
    """The tokens of a finished episode, as the runner that played it had them."""
    transcript = Transcript(episode.custom_data[columns.EPISODE_KEY])
    outputs = episode.extra_model_outputs
    routed = outputs.get(columns.EPISODE_ROUTED_EXPERTS)
    first, *others = episode.observations.data
    transcript.see(first.tolist())
    for turn, observation in enumerate(others):
        transcript.say(
            EngineOutput(
                episode.actions.data[turn].tolist(),
                outputs[columns.EPISODE_BEHAVIOR_LOGP].data[turn],
                outputs[columns.EPISODE_VERSIONS].data[turn],
                "stop",
                routed and routed.data[turn],
            )
        )
        transcript.see(observation.tolist())
    return transcript
