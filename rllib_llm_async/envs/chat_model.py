"""The language models of an environment (simulated user, judge), made from settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from rllib_llm_async.envs.agent_env import Message, ToolSchema

S = TypeVar("S", bound=BaseModel)


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
        settings: A mapping, see `ChatEndpointSettings`.
        key: Where the settings stand in the experiment file, for error messages.

    Raises:
        ValueError: If a setting cannot be, or a key for the endpoint is missing.
    """
    from rllib_llm_async.envs.chat_endpoint import ChatEndpoint, ChatEndpointSettings

    return ChatEndpoint(read_settings(ChatEndpointSettings, settings, key), key)


def read_settings(cls: type[S], settings: Any, key: str) -> S:
    """Validates a mapping; the first fault is one line that names its key.

    Raises:
        ValueError: For the first setting that cannot be.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"{key}: got {settings!r}, must be a mapping with "
            f"{', '.join(cls.model_fields)}"
        )
    try:
        return cls.model_validate(dict(settings))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    name = ".".join([key, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(
            str(fault["loc"][-1]), cls.model_fields, n=1, cutoff=0.0
        )[0]
        raise ValueError(f"{name}: unknown, did you mean {near!r}?")
    if fault["type"] == "missing":
        raise ValueError(f"{name}: missing")
    message = fault["msg"].removeprefix("Value error, ")
    raise ValueError(f"{name}: got {fault['input']!r}; {message}")
