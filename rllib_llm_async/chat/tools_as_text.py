"""Tools for templates that know none: said in the messages, in Hermes style.

What a template leaves out (the list of tools, or calls and results as well) stands in
the text of messages that it does render, so that any chat model can use tools.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

#: What is said before the schemas of tools, and what before an example of a call.
BEFORE_SCHEMAS = "You can call these functions, each given by its JSON schema:"
AFTER_SCHEMAS = "A call is written like this, several one after the other:"


def hermes_call(name: str, arguments: Any) -> str:
    """A call as text."""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return (
        f'<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, '
        f'"arguments": {arguments}}}\n</tool_call>'
    )


#: In Hermes style.
EXAMPLE_CALL = hermes_call("function_name", {"argument": "value"})


def describe_tools(
    messages: list[dict[str, Any]], tools: Sequence[Any], example: str | None
) -> list[dict[str, Any]]:
    """``messages`` with the tools at the end of the system message, made if need be.

    Args:
        messages: Prepared for rendering.
        tools: OpenAI schemas.
        example: The template's own way to write a call; None for Hermes JSON.
    """
    lines = [
        json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools
    ]
    text = "\n".join(
        [
            BEFORE_SCHEMAS,
            *lines,
            AFTER_SCHEMAS,
            example or EXAMPLE_CALL,
        ]
    )
    if messages and messages[0]["role"] == "system":
        said = "\n\n".join(filter(None, [messages[0]["content"], text]))
        return [{**messages[0], "content": said}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def calls_as_text(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls become text of the assistant, neighbouring results one user message."""
    written: list[dict[str, Any]] = []
    in_results = False
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if in_results:
                result = f"{written.pop()['content']}\n{result}"
            message = {"role": "user", "content": result}
            in_results = True
        else:
            in_results = False
        if message.get("tool_calls"):
            calls = [hermes_call(**call["function"]) for call in message["tool_calls"]]
            text = "\n".join(filter(None, [message["content"], *calls]))
            message = {"role": message["role"], "content": text}
        written.append(message)
    return written
