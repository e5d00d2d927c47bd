"""Messages as environments give them, made into what a chat template can render.

Environments say None, numbers, mappings and lists of content parts, too, and strings
that no tokenizer takes; templates differ in what they want of a tool call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.envs.agent_env import Message, ToolSchema

#: Mistral's templates want ids of exactly nine letters and digits.
_SHORT_ID_LENGTH = 9
#: What OpenAI's schema of a function holds, in this order; servers drop the rest.
_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
#: Types of content parts that are no text. Data may have a type of its own, too.
_OTHER_PARTS = (
    *("image", "image_url", "input_image", "video", "video_url", "input_video"),
    *("audio", "audio_url", "input_audio", "input_file"),
)
#: Keys under which messages carry what an assistant thought.
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class CallStyle:
    """How a template wants the tool calls of assistant messages.

    ``arguments_as_text``: JSON rather than a mapping. ``short_ids``: of nine
    characters.
    """

    arguments_as_text: bool = False
    short_ids: bool = False


def text_of(content: Any) -> str:
    """A message's content as text; what is neither text nor parts of it as JSON.

    Raises:
        ValueError: For a part that is no text, e.g. an image.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content and all(map(_is_part, content)):
        return "".join(text_of(part["text"]) for part in content)
    try:
        return json.dumps(content, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # e.g. dates for keys, a cycle
        return str(content)


def _is_part(part: Any) -> bool:
    if not (isinstance(part, dict) and isinstance(part.get("type"), str)):
        return False
    if part["type"] in _OTHER_PARTS:
        raise ValueError(f"content part of type {part['type']!r}: the agent reads text")
    return part["type"] == "text" and "text" in part


def prepare(
    message: Message, control_tokens: ControlTokens, style: CallStyle
) -> dict[str, Any]:
    """``message`` as a template can take it, without control tokens in its text.

    Raises:
        ValueError: For a part of its content that is no text.
    """
    prepared = {
        key: control_tokens.break_up_in(value)
        for key, value in message.items()
        if key not in ("content", "tool_calls") and value is not None
    }
    prepared["content"] = control_tokens.break_up(text_of(message.get("content")))
    if style.short_ids and message["role"] == "tool":
        prepared["tool_call_id"] = _short_id(prepared.get("tool_call_id", ""))
    if message.get("tool_calls"):
        prepared["tool_calls"] = [
            control_tokens.break_up_in(_prepare_call(call, style))
            for call in message["tool_calls"]
        ]
    return prepared


def _prepare_call(call: dict[str, Any], style: CallStyle) -> dict[str, Any]:
    function = call["function"]
    arguments: Any = function.get("arguments") or {}
    if isinstance(arguments, str):
        if not style.arguments_as_text:
            arguments = _decoded(arguments)
    elif style.arguments_as_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    call_id = str(call.get("id", ""))
    return {
        "id": _short_id(call_id) if style.short_ids else call_id,
        "type": "function",
        "function": {
            "name": str(function["name"]),
            "arguments": arguments,
        },
    }


def _decoded(arguments: str) -> dict[str, Any]:
    """The mapping in ``arguments``; of a malformed call its text, by some name."""
    try:
        decoded = json.loads(arguments)
    except (ValueError, RecursionError):
        decoded = arguments
    return decoded if isinstance(decoded, dict) else {"arguments": decoded}


def _short_id(call_id: str) -> str:
    letters = "".join(filter(str.isalnum, call_id))
    return letters[-_SHORT_ID_LENGTH:].rjust(_SHORT_ID_LENGTH, "0")


def orders_to_try(messages: list[Message]) -> Iterator[list[Message]]:
    """``messages`` as they are, and as templates take them that object to that.

    Some want a user message first, or any at all; some want roles to alternate; some
    know no system message, or none but the first. The text of all messages stays, in
    its order.
    """
    yield messages
    asked = with_user_first(messages)
    yield asked
    yield _merged(asked)
    for first in (1, 0):
        yield _merged([*asked[:first], *map(as_user, asked[first:])])


def as_user(message: Message) -> Message:
    """What the system says, said by the user; other messages as they are."""
    return {**message, "role": "user"} if message["role"] == "system" else message


def with_user_first(messages: list[Message]) -> list[Message]:
    """Puts an empty user message before the first that is neither user nor system."""
    first = next(
        (i for i, m in enumerate(messages) if m["role"] != "system"), len(messages)
    )
    if first < len(messages) and messages[first]["role"] == "user":
        return messages
    empty = {"role": "user", "content": ""}
    return [*messages[:first], empty, *messages[first:]]


def _merged(messages: list[Message]) -> list[Message]:
    """Joins neighbouring messages of the user, or of the system."""
    merged: list[Message] = []
    for message in messages:
        last = merged[-1] if merged else None
        role = message["role"]
        if last and last["role"] == role and role in ("user", "system"):
            contents = filter(None, [last["content"], message["content"]])
            merged[-1] = {**last, "content": "\n\n".join(contents)}
        else:
            merged.append(message)
    return merged


def prepare_tool(tool: ToolSchema) -> ToolSchema:
    """``tool`` as a server gives it to a template: OpenAI's keys, in their order."""
    function = tool.get("function", tool)
    kept = {
        key: function[key] for key in _FUNCTION_KEYS if function.get(key) is not None
    }
    return {"type": "function", "function": kept}


def thought_in(message: Message) -> str:
    """What an assistant's message says that it thought, under whatever key."""
    thoughts = (message.get(key) for key in THOUGHT_KEYS)
    return next((t.strip("\n") for t in thoughts if isinstance(t, str)), "")


def without_thought(message: Message) -> Message:
    """The message without what it thought."""
    return {key: said for key, said in message.items() if key not in THOUGHT_KEYS}


def by_turns(
    messages: Sequence[Message],
) -> tuple[list[Message], list[tuple[Message, list[Message]]]]:
    """What stood before the agent first spoke, and its turns with what came after each.

    What an assistant says before it is asked anything is a greeting by the environment,
    unless it calls a tool.
    """
    opening: list[Message] = []
    turns: list[tuple[Message, list[Message]]] = []
    asked = False
    for message in messages:
        if message["role"] == "assistant" and (
            asked or (opening and message.get("tool_calls"))
        ):
            turns.append((message, []))
            asked = True
        elif turns:
            turns[-1][1].append(message)
        else:
            opening.append(message)
            asked = asked or message["role"] in ("user", "tool")
    return opening, turns
