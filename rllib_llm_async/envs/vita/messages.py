"""The package's messages for chat models."""

from __future__ import annotations

from typing import Any

from vita.utils.llm_utils import format_messages

from rllib_llm_async.envs.agent_env import Message


def as_chat(messages: list[Any]) -> list[Message]:
    """Text messages as OpenAI dicts; some servers refuse null fields."""
    return [
        {"role": message["role"], "content": message["content"]}
        for message in format_messages(messages)
    ]
