"""An episode under way: its tokens so far, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import experts_of_tokens
from rllib_llm_async.engine.engine_output import EngineOutput

if TYPE_CHECKING:
    from rllib_llm_async.env_runners.replay import Replay


@dataclass
class Transcript:
    """An episode's tokens so far, those of the turn under way included.

    ``key`` is its `columns.EPISODE_KEY`; ``versions`` holds -1 where the agent sampled
    nothing; ``turns`` are those that have ended, ``seen`` is what came before each.
    ``routed`` are `EngineOutput.routed_experts`, of ``num_routed`` tokens in all.
    """

    key: int
    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    num_sampled: int = 0
    seen: list[Sequence[int]] = field(default_factory=list)
    turns: list[EngineOutput] = field(default_factory=list)
    routed: list[np.ndarray] = field(default_factory=list)
    num_routed: int = 0

    def see(self, token_ids: Sequence[int]) -> None:
        """Adds what comes from the environment."""
        self.seen.append(token_ids)
        self.tokens += token_ids
        self.versions += [-1] * len(token_ids)

    def say(self, output: EngineOutput) -> None:
        """Adds what the agent sampled."""
        self.tokens += output.token_ids
        self.versions += output.versions.tolist()
        self.num_sampled += len(output.token_ids)
        if output.routed_experts is not None:
            self.routed.append(output.routed_experts)
            self.num_routed += len(output.routed_experts)


@dataclass(eq=False)
class Progress:
    """Where an episode stands, for whoever waits for it.

    ``num_tokens`` counts all sampled ones, those of failed tries included;
    ``lost_tries`` holds the tokens of each of these and the reason of its end, until
    somebody takes them out. ``transcript`` is that of the newest try, ``replay`` what a
    checkpoint has brought and the first try has not said again.
    """

    doing: str = "not begun"
    since: float = field(default_factory=time.monotonic)
    num_tokens: int = 0
    num_lost_tokens: int = 0
    lost_tries: list[tuple[int, str]] = field(default_factory=list)
    transcript: Transcript | None = None
    replay: Replay | None = None

    def now(self, doing: str) -> None:
        """Something else is waited for from now on."""
        self.doing, self.since = doing, time.monotonic()

    def begin_again(self, reason: str) -> None:
        """A try has failed."""
        self.lost_tries.append((self.num_tokens - self.num_lost_tokens, reason))
        self.num_lost_tokens = self.num_tokens
        self.replay = None
        self.now(f"played again after {reason}")


def sampled_under(
    version: int, transcripts: dict[int, Transcript]
) -> list[dict[str, np.ndarray]]:
    """Token columns of all episodes with tokens of a version, finished or not.

    Args:
        version: The version.
        transcripts: By `columns.EPISODE_KEY`.
    """
    sequences = []
    for key, transcript in transcripts.items():
        versions = np.asarray(transcript.versions, dtype=np.int64)
        # What comes after the version's last token is not needed to score it.
        end = int((versions == version).nonzero()[0].max(initial=-1)) + 1
        if not end:
            continue
        sequences.append(
            {
                columns.TOKENS: np.asarray(transcript.tokens[:end], np.int64),
                columns.POSITION_IDS: np.arange(end),
                columns.LOSS_MASK: versions[:end] == version,
                columns.EPISODE_KEYS: np.full(end, key, np.int64),
            }
        )
        if transcript.num_routed:
            sequences[-1][columns.ROUTED_EXPERTS] = experts_of_tokens(
                transcript.routed, end
            )
    return sequences
