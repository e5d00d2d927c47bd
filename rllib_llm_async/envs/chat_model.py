"""The language models of an environment: its simulated user, its judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rllib_llm_async.envs.agent_env import Message, ToolSchema


def as_it_is(message: Message) -> Message:
    """A message that anything can be read from."""
    return message


class ChatModel(Protocol):
    """Answers a conversation; many calls at once on one asyncio loop."""

    async def complete(
        self,
        messages: list[Message],
        tools: list[ToolSchema] | None = None,
        read: Callable[[Message], Any] = as_it_is,
    ) -> Any:
        """The next assistant message, tool-call arguments as the raw string.

        Args:
            messages: The conversation.
            tools: Schemas of what may be called.
            read: What is made of the message and returned. Where it raises ValueError,
                the model is asked again.

        Raises:
            EpisodeError: If no valid answer could be had.
        """
        ...

    def waiting_for(self) -> str | None:
        """What all calls wait for, such as an endpoint that is down; None: nothing."""
        ...

    def metrics(self) -> dict[str, float]:
        """Sums since the start, e.g. ``calls``, ``completion_tokens``, ``seconds``."""
        ...


class ReportsOnModels:
    """A suite that says what its ``models`` (by role) do, cost and wait for."""

    models: dict[str, ChatModel]

    def metrics(self) -> dict[str, float]:
        """What they did and cost since the start."""
        return {
            f"{role}_{key}_lifetime": value
            for role, model in self.models.items()
            for key, value in model.metrics().items()
        }

    def waiting_for(self) -> list[str]:
        """See `WaitsForOthers`."""
        return [text for m in self.models.values() if (text := m.waiting_for())]

    def seconds_waited(self) -> float:
        """See `WaitsForOthers`."""
        return sum(m.metrics().get("down_seconds", 0.0) for m in self.models.values())
