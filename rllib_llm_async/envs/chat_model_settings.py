"""From the settings `user` and `judge` of an environment to the model they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.settings.reading import read_settings


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
