"""The language models of an environment: its simulated user, its judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rllib_llm_async.envs.agent_env import Message, ToolSchema


def as_it_is(message: Message) -> Message:
    """A message that anything can be read from."""
    return message


@dataclass(frozen=True)
class Answer:
    """What a model wrote, and what it took; ``finish_reason`` is OpenAI's."""

    message: Message
    finish_reason: str | None
    num_prompt_tokens: int
    num_completion_tokens: int

    def whole(self) -> Message:
        """The message, if it is one from beginning to end.

        The agent would pay for what a limit cut off: rubrics behind the cut of a
        judge's answer would not hold, and a user would ask for half of a thing, or
        leave without the marker that says so.

        Raises:
            ValueError: If it is cut off or empty.
        """
        if self.finish_reason == "length":
            raise ValueError(
                "answer cut off: max_tokens, or the model's context, is too small"
            )
        content = self.message.get("content") or ""
        if not (content.strip() or self.message.get("tool_calls")):
            raise ValueError("empty answer")
        return self.message


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
            EpisodeError: If no valid answer could be had; one that is cut off or empty
                is none.
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
