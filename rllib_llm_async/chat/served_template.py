"""The chat template that goes with a trained agent: it shows dialogues as trained.

In training a dialogue's context only grows. A server renders each dialogue anew, and
the published templates of many models then show earlier turns otherwise than the model
once saw them: without their thoughts, without the empty thought that a prompt began
with (Qwen3 with ``enable_thinking: false``), with the tools elsewhere. What a template
knows nothing of (tools, a system message) was said to the agent in other messages. An
agent that is served so gets prompts that it was not trained on.

Where the published template does show dialogues as they were trained on, it stays.
Otherwise ``as_trained.jinja`` goes with the agent, with the published template inside.
Whether either does is tried on dialogues of all kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rllib_llm_async.chat.messages import CallStyle
from rllib_llm_async.chat.probe_dialogues import PROBE_TOOLS, Probe, as_served, probes
from rllib_llm_async.chat.template import ASKED, MARKER, ChatTemplate
from rllib_llm_async.chat.tools_as_text import (
    AFTER_SCHEMAS,
    BEFORE_SCHEMAS,
    EXAMPLE_CALL,
)
from rllib_llm_async.chat.turn_ends import TurnEnd, stand_in
from rllib_llm_async.chat.turn_parser import TurnParser
from rllib_llm_async.envs.agent_env import Message, ToolSchema

#: Takes the place of what an agent said where only its surroundings matter.
_MARK = "7305918264073519"
_LAST_LINE_BREAK = re.compile(r"(\r\n|\r|\n)\Z")


class ServedTemplate(NamedTuple):
    """A chat template, and what a server shows otherwise than trained for all that.

    ``refused`` says which dialogues cannot be had under the model's template at all.
    """

    text: str
    differences: list[str]
    refused: list[str]


def served_template(
    tokenizer: Any,
    template: ChatTemplate,
    ends: Mapping[str, TurnEnd],
    parser: TurnParser,
    start: Callable[[list[Message], list[ToolSchema]], list[int]],
) -> ServedTemplate:
    """The published template if it shows dialogues as trained, else one that does.

    Args:
        tokenizer: Of the model.
        template: Its chat template.
        ends: Of turns, see `turn_ends`.
        parser: Of turns.
        start: Token ids of a dialogue as trained, up to where the agent speaks.
    """
    published = tokenizer.chat_template
    if parser.name == "openai":
        return ServedTemplate(published, ["gpt-oss, by vLLM's own code"], [])
    trained: list[tuple[Probe, list[int]]] = []
    refused, unsaid = [], []
    for probe in probes(template, parser):
        try:
            trained.append((probe, start(probe.messages, PROBE_TOOLS)))
        except ValueError as error:
            if probe.begins:
                refused.append(f"{probe.shows} ({error})")
            else:
                unsaid.append(probe.shows)
    differ = partial(_differences, tokenizer, trained)
    if not differ(published):
        return ServedTemplate(published, unsaid, refused)
    text = _as_trained(published, template, ends, parser)
    return ServedTemplate(text, differ(text) + unsaid, refused)


def _differences(
    tokenizer: Any, trained: Sequence[tuple[Probe, list[int]]], template: str
) -> list[str]:
    """What of the probes ``template`` shows otherwise than trained."""
    differ = []
    for probe, ids in trained:
        try:
            text = tokenizer.apply_chat_template(
                as_served(probe.messages),
                tools=PROBE_TOOLS,
                chat_template=template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception:  # templates raise what they like
            differ.append(probe.shows)
            continue
        if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
            differ.append(probe.shows)
    return differ


def _as_trained(
    published: str,
    template: ChatTemplate,
    ends: Mapping[str, TurnEnd],
    parser: TurnParser,
) -> str:
    defaults = "\n".join(
        f"{{%- set {name} = {name} | default({_literal(value)}) -%}}"
        for name, value in template.variables.items()
    )
    trained = _literal(_found_out(template, ends, parser))
    frame = Path(__file__).with_name("as_trained.jinja").read_text()
    before, _, after = frame.partition("@PUBLISHED@")
    settings = f"{{%- set trained = {trained} -%}}\n{defaults}".rstrip()
    return (
        before
        + _LAST_LINE_BREAK.sub("", published)
        + after.replace("@SETTINGS@", settings, 1)
    )


def _found_out(
    template: ChatTemplate, ends: Mapping[str, TurnEnd], parser: TurnParser
) -> dict[str, Any]:
    """What ``as_trained.jinja`` has to know of a template."""
    style = template.call_style or CallStyle()
    return {
        "mark": _MARK,
        "knows_calls": template.call_style is not None,
        "arguments_as_text": style.arguments_as_text,
        "short_ids": style.short_ids,
        "shows_tools": template.shows_tools,
        "before_tools": BEFORE_SCHEMAS,
        "after_tools": f"{AFTER_SCHEMAS}\n{template.example() or EXAMPLE_CALL}",
        "user_first": template.wants_user_first,
        "orders": dict(_orders(template)),
        "ends": {
            kind: ends.get(kind, ends["text"])._asdict() for kind in ("text", "calls")
        },
        "results_follow_calls": "calls" in ends,
        "one_call": "calls" in ends and _refuses(template, _two_calls()),
        "system_asks_later": _hides_a_later_system_message(template),
        "headers": _headers(template),
        "thought_key": template.thought_key or "",
        "thought_tags": list(parser.thought_tags or ()),
    }


def _orders(template: ChatTemplate) -> Iterator[tuple[str, int]]:
    """In which order kinds of messages are shown, where not as they come."""
    greeting = {"role": "assistant", "content": MARKER}
    system = {"role": "system", "content": MARKER}
    asked = {"role": "user", "content": MARKER}
    kinds: list[list[Message]] = [
        [*before, *rest]
        for before in ([], [system], [system, system])
        for rest in (
            [],
            [asked],
            [asked, asked],
            [greeting],
            [greeting, asked],
            [greeting, asked, asked],
            [asked, system, asked],
        )
    ]
    for text in ([system], [asked], [asked, asked], [system, asked], [asked, system]):
        kinds.append([ASKED, stand_in(None), *text])
    result = {"role": "tool", "tool_call_id": "call_0", "content": MARKER}
    called = stand_in([("f", "call_0")])
    for text in ([result], [result, asked], [asked, result], [result, system]):
        kinds.append([ASKED, called, *text])
    for messages in kinds:
        for tools in (None, PROBE_TOOLS):
            try:
                order, _ = template.in_order(messages, prompt=True, tools=tools)
            except ValueError:
                continue
            if order:
                roles = " ".join(message["role"] for message in messages)
                yield roles + (" tools" if tools else ""), order


def _two_calls() -> list[Message]:
    results = [
        {"role": "tool", "tool_call_id": f"call_{number}", "content": MARKER}
        for number in (0, 1)
    ]
    return [ASKED, stand_in([("f", "call_0"), ("g", "call_1")]), *results]


def _refuses(template: ChatTemplate, messages: list[Message]) -> bool:
    try:
        template.render(messages, prompt=True)
    except ValueError:
        return True
    return False


def _hides_a_later_system_message(template: ChatTemplate) -> bool:
    said = MARKER[::-1]
    messages = [ASKED, stand_in(None), {"role": "system", "content": said}]
    try:
        shown = template.render(messages, prompt=True)
    except ValueError:
        return False
    return said not in shown.rpartition(MARKER)[2]


def _headers(template: ChatTemplate) -> list[str]:
    """What stands before turns in a dialogue, where that is not the prompt."""
    asked = template.render([ASKED], prompt=False)
    call = stand_in([("f", "call_0")])
    headers = set()
    for turn in (stand_in(None), call, {**call, "content": "a"}):
        try:
            rendered = template.render([ASKED, turn], prompt=False)
        except ValueError:
            continue
        header = rendered.removesuffix(template.turn(turn))
        headers.add(header.removeprefix(asked))
    return sorted(headers, key=len, reverse=True)


def _literal(value: Any) -> str:
    """``value`` as Jinja writes it."""
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)
