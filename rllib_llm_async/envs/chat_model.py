"""The language models of an environment (simulated user, judge), made from settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rllib_llm_async.envs.agent_env import Message, ToolSchema
from rllib_llm_async.settings.reading import read_settings


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


def make_chat_model(settings: Any, key: str) -> ChatModel:
    """The model that ``settings`` describe.

    Args:
        settings: A mapping, see `ServedModelSettings` if it has ``served_model``,
            `ChatEndpointSettings` otherwise.
        key: Where the settings stand in the experiment file, for error messages.

    Raises:
        ValueError: If a setting cannot be, or a key for the endpoint is missing.
    """
    if isinstance(settings, Mapping) and "served_model" in settings:
        from rllib_llm_async.envs.user_model import ServedModel, ServedModelSettings

        return ServedModel(read_settings(ServedModelSettings, settings, key), key)
    from rllib_llm_async.envs.chat_endpoint import ChatEndpoint, ChatEndpointSettings

    return ChatEndpoint(read_settings(ChatEndpointSettings, settings, key), key)
