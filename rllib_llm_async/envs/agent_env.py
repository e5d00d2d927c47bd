"""The contract between an agent environment and whoever plays it.

Messages are OpenAI chat dicts. An environment never sees tokens and returns only new
messages, so that the caller can append to its context without rendering it again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

Message = dict[str, Any]
ToolSchema = dict[str, Any]


@dataclass(frozen=True)
class TaskRef:
    """Names one task of a suite."""

    suite: str
    id: str
    split: str

    @property
    def domain(self) -> str:
        """What comes before the first slash of ``id``, else the suite.

        Only until the episode's last ``info`` tells its ``domain``.
        """
        return self.id.partition("/")[0] if "/" in self.id else self.suite


@dataclass
class Start:
    """What an episode begins with.

    ``tools`` are OpenAI function schemas; ``info`` holds ``domain``.
    """

    messages: list[Message]
    tools: list[ToolSchema]
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Step:
    """The environment's answer to one assistant message.

    ``terminated``: the task ended, in success or failure. ``truncated``: a limit ended
    it. ``info`` of the last step holds ``success``, ``domain``, ``reason``,
    ``reward_breakdown`` and ``num_malformed_tool_calls``.
    """

    messages: list[Message]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class EpisodeError(RuntimeError):
    """The environment, not the agent, failed: drop the episode, never train on it."""

    #: Why; ``num_episodes_dropped_<reason>`` counts the groups that end so.
    reason = "env_failure"


class BadRewardError(EpisodeError):
    """The environment gave a reward that is no finite number."""

    reason = "bad_reward"


class UnusableOutputError(EpisodeError, ValueError):
    """The engine, not the environment, gave tokens that nothing can be learned from."""

    reason = "bad_logp"


def is_reward(value: Any) -> bool:
    """Whether it is a finite number; None, text, arrays, NaN and 10**400 are none."""
    try:
        return getattr(value, "ndim", 0) == 0 and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


class AgentEnv(Protocol):
    """One episode after another; many instances run on one asyncio loop."""

    async def reset(self, task: TaskRef) -> Start: ...

    async def step(self, message: Message) -> Step: ...

    async def aclose(self) -> None: ...


class TaskSuite(Protocol):
    """The tasks of an environment, and a factory of it."""

    name: str

    def tasks(self, split: str) -> Sequence[TaskRef]: ...

    def make(self) -> AgentEnv: ...


@runtime_checkable
class ReportsMetrics(Protocol):
    """A suite that counts, e.g. the calls of its simulated user."""

    def metrics(self) -> dict[str, float]:
        """Result keys under ``env_runners/`` and their sums since the start."""
        ...


@runtime_checkable
class WaitsForOthers(Protocol):
    """A suite whose environments need something that can be down, e.g. an endpoint."""

    def waiting_for(self) -> list[str]:
        """What is down, for how long and why, a line each; empty while all is well."""
        ...

    def seconds_waited(self) -> float:
        """Sum since the start; no environment's deadline runs in this time."""
        ...
