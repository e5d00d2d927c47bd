"""The messages of a gpt-oss turn: thoughts, calls and what is said.

A turn is a series of ``<|start|>assistant<|channel|>CHANNEL<|message|>TEXT<|end|>``,
whose first header the prompt has begun; a call's header names its recipient
(https://github.com/openai/harmony, docs/format.md).
"""

from __future__ import annotations

import json
import re

#: Opens a call, in either order of recipient and channel.
HARMONY_CALL = "to=functions."
_START, _MESSAGE = "<|start|>", "<|message|>"
_END = re.compile(r"<\|(?:end|call|return|start)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
#: Recipients, or what they begin with, that are no tools of the environment.
_NO_TOOLS = ("assistant", "python", "browser", "container")


def parse_harmony(text: str) -> tuple[str, list[tuple[str, str]]]:
    """What is said aloud, and the calls by name and arguments.

    As vLLM's server reads it: a recipient is a tool with and without "functions."
    before it, and what goes to one that is none is not said. A message whose header was
    cut says nothing; arguments that were cut stay as written.
    """
    said, calls = [], []
    position = 0
    while (message := text.find(_MESSAGE, position)) >= 0:
        header = text[position:message].rpartition(_START)[2]
        body, position = _body(text, message + len(_MESSAGE))
        channel = _CHANNEL.search(header)
        recipient = _RECIPIENT.search(header)
        tool = _tool(recipient.group(1)) if recipient else None
        if tool:
            calls.append((tool, body.strip()))
        elif not recipient and (channel is None or channel.group(1) != "analysis"):
            said.append(body)
    if position == 0 and "<|" not in text and HARMONY_CALL not in text:
        said.append(text)
    return "\n".join(said), calls


def _tool(recipient: str) -> str | None:
    name = recipient.removeprefix("functions.")
    if name == recipient and name.partition(".")[0] in _NO_TOOLS:
        return None
    return name


def _body(text: str, start: int) -> tuple[str, int]:
    """The text of a message, and where it ends; JSON may hold any token's string."""
    try:
        _, length = json.JSONDecoder().raw_decode(text[start:].lstrip())
        blank = len(text) - start - len(text[start:].lstrip())
        search_from = start + blank + length
    except (ValueError, RecursionError):
        search_from = start
    end = _END.search(text, search_from)
    stop = end.start() if end else len(text)
    return text[start:stop], stop
