"""What models write, made fit for the package, and its messages made fit for models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from vita.utils.llm_utils import format_messages

from rllib_llm_async.envs.agent_env import Message


def encodable(text: str) -> str:
    r"""``text`` with "?" for lone surrogates, as "\ud83d" in JSON gives.

    They can be neither tokenised nor sent to an endpoint.
    """
    return text.encode("utf-8", "replace").decode()


def as_chat(messages: list[Any]) -> list[Message]:
    """The package's text messages as OpenAI dicts; some servers refuse null fields."""
    return [
        {"role": message["role"], "content": message["content"]}
        for message in format_messages(messages)
    ]


@dataclass(frozen=True)
class Call:
    """A tool call of the agent.

    If it cannot be parsed, ``arguments`` shows the judge what was written.
    """

    id: str
    name: str
    arguments: dict[str, Any]
    is_malformed: bool

    @classmethod
    def parse(cls, call: dict[str, Any]) -> Call:
        """Reads an OpenAI tool call, whatever the model wrote in it."""
        name, raw = call["function"]["name"], call["function"]["arguments"]
        try:
            written = json.dumps(json.loads(raw), ensure_ascii=False)
            arguments = json.loads(encodable(written))
        except (TypeError, ValueError, RecursionError):
            arguments = None
        is_malformed = not isinstance(name, str) or not isinstance(arguments, dict)
        return cls(
            id=str(call.get("id")),
            name=encodable(str(name)),
            arguments={"malformed": encodable(str(raw))} if is_malformed else arguments,
            is_malformed=is_malformed,
        )
