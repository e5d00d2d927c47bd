"""Dialogues on which it is tried what a chat template shows to whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from rllib_llm_async.chat.messages import THOUGHT_KEYS, text_of, thought_in
from rllib_llm_async.chat.template import ChatTemplate
from rllib_llm_async.chat.turn_parser import TurnParser
from rllib_llm_async.envs.agent_env import Message, ToolSchema

_ORDER = {
    "type": "object",
    "properties": {"order": {"type": "string", "description": "its id"}},
    "required": ["order"],
}
#: On offer in all of them.
PROBE_TOOLS: list[ToolSchema] = [
    {
        "type": "function",
        "function": {"name": name, "description": does, "parameters": _ORDER},
    }
    for name, does in (("find", "Looks it up."), ("cancel", "Cancels it."))
]


class Probe(NamedTuple):
    """A dialogue, what is special about it, and whether an episode may so begin."""

    shows: str
    messages: list[Message]
    begins: bool = False


def probes(template: ChatTemplate, parser: TurnParser) -> Iterator[Probe]:
    """Dialogues of all kinds that an agent has, the last word not the agent's.

    Args:
        template: Of the agent's model.
        parser: Knows the model's thoughts, if it has any.
    """
    asked = [_POLICY, _ASKS]
    greeted = [_POLICY, _says("How can I help?"), _ASKS]
    yield Probe("a policy and a question", asked, begins=True)
    yield Probe("a question alone", [_ASKS], begins=True)
    yield Probe("a greeting", greeted, begins=True)
    yield Probe("a ticket without a user", [_POLICY], begins=True)
    opening, closing = parser.thought_tags or ("", "")
    prompt = template.prompt.rstrip()
    opens = bool(opening) and prompt.endswith(opening)
    thought = _THOUGHT if opens else ""
    yield Probe("earlier answers", [*asked, *_thinking(_ANSWERS, thought)])
    yield Probe("tool calls and their results", [*greeted, *_thinking(_TURNS, thought)])
    yield Probe(
        "calls on a ticket without a user", [_POLICY, *_thinking(_TURNS, thought)]
    )
    yield Probe("several calls in a turn", [*asked, *_thinking(_TWO_CALLS, thought)])
    # A prompt that has closed the thought leaves none to tell.
    closes = bool(closing) and prompt.endswith(closing)
    if bool(closing) and closing in template.text and not closes:
        yield Probe("thoughts of earlier turns", [*asked, *_thinking(_TURNS, _THOUGHT)])


def as_served(messages: list[Message]) -> list[dict[str, Any]]:
    """OpenAI messages as servers give them to a chat template.

    Contents are text, arguments mappings, thoughts stand under the keys that vLLM uses.
    """
    served = []
    for message in messages:
        shown = {key: v for key, v in message.items() if key not in THOUGHT_KEYS}
        shown["content"] = text_of(message.get("content"))
        if thought := thought_in(message):
            shown["reasoning"] = shown["reasoning_content"] = thought
        if "tool_calls" in message:
            shown["tool_calls"] = [_served_call(c) for c in message["tool_calls"]]
        served.append(shown)
    return served


def _served_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.loads(function["arguments"])
    return {**call, "function": {**function, "arguments": arguments}}


_POLICY: Message = {"role": "system", "content": "Cancel what is asked for."}
_ASKS: Message = {"role": "user", "content": "Cancel order 17, please."}


def _says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _calls(*names: str, said: str | None = None) -> Message:
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": '{"order": "17"}'},
        }
        for number, name in enumerate(names)
    ]
    return {"role": "assistant", "content": said, "tool_calls": calls}


def _result(text: str, number: int = 0) -> Message:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


def _thinking(messages: list[Message], thought: str) -> list[Message]:
    """The messages, with a thought in each of the agent's unless it is empty."""
    if not thought:
        return messages
    return [
        {**message, "reasoning": thought} if message["role"] == "assistant" else message
        for message in messages
    ]


_THOUGHT = "Is it theirs?\nIt is."
_YES: Message = {"role": "user", "content": "Yes."}
_ANSWERS = [_says("Order 17, right?"), _YES, _says("And no other?"), _YES]
#: Five turns of the agent, with calls and without.
_TURNS = [
    _calls("find"),
    _result('{"status": "open"}'),
    _says("It is open. Shall I cancel it?"),
    _YES,
    _calls("cancel", said="One moment."),
    _result("cancelled"),
    _calls("find"),
    _result(""),
    _says("It is cancelled."),
    {"role": "user", "content": "Thanks."},
]
_TWO_CALLS = [
    _calls("find", "cancel"),
    _result("open"),
    _result("cancelled", 1),
    _says("Done."),
    _YES,
]
