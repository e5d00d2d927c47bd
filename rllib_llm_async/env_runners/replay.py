"""Half-generated episodes in a checkpoint: what the agent has said, to be said again.

The environment of such an episode is gone; another one is brought to where it stood by
what the agent told it. Every context is compared with the recorded one, so an
environment that is not deterministic is found out, and its episode starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.env_runners.transcript import Transcript
from rllib_llm_async.envs.agent_env import EpisodeError


class NotReplayableError(EpisodeError):
    """The environment answers otherwise than before the checkpoint."""

    reason = "not_replayable"


def record_of(transcript: Transcript) -> dict[str, Any]:
    """What a checkpoint keeps of an episode under way: numbers, strings and arrays.

    ``seen``: int64 tokens ``[new]`` of what the environment said before each turn.
    ``turns``: of each the ``token_ids``, ``logp``, ``versions``, ``finish_reason`` and,
    if there are some, ``routed_experts`` of an `EngineOutput`. A turn that has not
    ended is left out, and sampled again.
    """
    return {
        "key": transcript.key,
        "seen": [np.asarray(tokens, np.int64) for tokens in transcript.seen],
        "turns": [
            {
                "token_ids": np.asarray(turn.token_ids, np.int64),
                "logp": turn.logp,
                "versions": turn.versions,
                "finish_reason": turn.finish_reason,
                **(
                    {}
                    if turn.routed_experts is None
                    else {"routed_experts": turn.routed_experts}
                ),
            }
            for turn in transcript.turns
        ],
    }


def num_tokens_of(record: Mapping[str, Any]) -> int:
    """Tokens that the agent has said."""
    return sum(len(turn["token_ids"]) for turn in record["turns"])


def versions_of(record: Mapping[str, Any]) -> np.ndarray:
    """int64 ``[agent tokens]``."""
    return np.concatenate(
        [np.zeros(0, np.int64), *(turn["versions"] for turn in record["turns"])]
    )


class Replay:
    """Hands out the turns of a `record_of`, one after the other.

    Args:
        record: See there.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.key: int = record["key"]
        self.num_tokens = num_tokens_of(record)
        self._seen = record["seen"]
        self._turns = [
            EngineOutput(
                turn["token_ids"].tolist(),
                turn["logp"],
                turn["versions"],
                turn["finish_reason"],
                turn.get("routed_experts"),
            )
            for turn in record["turns"]
        ]

    def whole(self) -> Transcript:
        """The tokens of all turns, those included that have not been said again."""
        transcript = Transcript(self.key)
        # What was seen after the last turn is left out.
        for seen, turn in zip(self._seen, self._turns, strict=False):
            transcript.see(seen.tolist())
            transcript.say(turn)
        return transcript

    def next_turn(self, transcript: Transcript) -> EngineOutput | None:
        """Adds the next turn to the transcript; None once all have been said.

        Raises:
            NotReplayableError: If the context is another one than was recorded.
        """
        number = len(transcript.turns)
        if number < len(self._seen) and not np.array_equal(
            self._seen[number], transcript.seen[number]
        ):
            raise NotReplayableError(
                f"the environment answers otherwise than recorded, before turn {number}"
            )
        if number >= len(self._turns):
            return None
        transcript.say(self._turns[number])
        return self._turns[number]
