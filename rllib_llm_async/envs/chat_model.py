"""The language models of an environment (simulated user, judge), made from settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rllib_llm_async.envs.agent_env import Message, ToolSchema
from rllib_llm_async.settings.reading import read_settings


class ChatModel(Protocol):
    """Answers a conversation; many calls at once on one asyncio loop."""

    async def complete(
        self, messages: list[Message], tools: list[ToolSchema] | None = None
    ) -> Message:
        """The next assistant message, tool-call arguments as the raw string.

        Raises:
            EpisodeError: If no valid answer could be had.
        """
        ...

    def metrics(self) -> dict[str, float]:
        """Sums since the start, e.g. ``calls``, ``completion_tokens``, ``seconds``."""
        ...


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
