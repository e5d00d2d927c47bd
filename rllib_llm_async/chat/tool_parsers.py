"""Tool calls in what a model wrote: parsers by name.

The names are vLLM's. Hermes JSON and harmony are read here, without vLLM, whose import
takes seconds (and whose harmony parser fetches a vocabulary); all others are vLLM's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rllib_llm_async.chat.closing_tags import ClosingTags
from rllib_llm_async.chat.harmony import parse_harmony
from rllib_llm_async.chat.nesting import Nesting
from rllib_llm_async.chat.vllm_parsers import VLLMToolParser, vllm_parser_names
from rllib_llm_async.envs.agent_env import ToolSchema


class Call(NamedTuple):
    """A call as written: its name, and its arguments as JSON unless malformed."""

    name: str
    arguments: str


class CallMarks(NamedTuple):
    """What calls begin and end with, as far as a template tells.

    ``start`` also finds a call that cannot be read; ``end`` is empty if calls end with
    no tag; ``tags`` is None if nothing is known of them.
    """

    start: re.Pattern
    end: str
    nesting: Nesting
    tags: ClosingTags | None = None


#: From text without thoughts, and the tools on offer, to what is said and called.
ToolParser = Callable[[str, Sequence[ToolSchema]], tuple[str, list[Call]]]

_HERMES_START, _HERMES_END = "<tool_call>", "</tool_call>"
_decode_json = json.JSONDecoder().raw_decode

#: By which parser a template's own call is read, if it looks like this; ``f`` is the
#: function's name. Calls that look like none of these are told apart by no certain
#: sign.
_SIGNS = {
    "hermes": r'<tool_call>\s*\{"name": "f", "arguments"',
    "qwen3_coder": r"<tool_call>\s*<function=f>",
    "glm45": r"<tool_call>f\s*<arg_key>",
    "mistral": r"\[TOOL_CALLS\]",
    "openai": r"to=functions\.f<\|channel\|>commentary",
    "deepseek_v3": r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n",
    "deepseek_v31": r"<｜tool▁call▁begin｜>f<｜tool▁sep｜>",
    "gemma4": r"<\|tool_call>call:f\{",
    "lfm2": r"<\|tool_call_start\|>\[f\(",
    "muse_glimmer": r'<atem:invoke name="f">',
    "llama3_json": r'\A\s*\{"name": "f", "parameters": ',
}


def parser_of(rendered_call: str) -> str | None:
    """Name of the parser for a call that a template rendered, None if not certain.

    Args:
        rendered_call: An assistant's turn with a call of ``f`` alone.
    """
    names = [name for name, sign in _SIGNS.items() if re.search(sign, rendered_call)]
    return names[0] if len(names) == 1 else None


def make_tool_parser(name: str, tokenizer: Any, marks: CallMarks) -> ToolParser:
    """The parser of a name.

    Args:
        name: One of `tool_parser_names`.
        tokenizer: Of the model.
        marks: Of the model's calls.

    Raises:
        ValueError: For any other name.
    """
    check_tool_parser_name(name)
    if name in _OWN:
        return _OWN[name]
    return _WithMalformed(VLLMToolParser(name, tokenizer), marks)


def check_tool_parser_name(name: str) -> None:
    """Raises a ValueError that lists the valid names; takes any without vLLM."""
    names = tool_parser_names()
    if name not in names and vllm_parser_names("tool_parsers"):
        raise ValueError(
            f"tool_parser: got {name!r}, must be one of auto, {', '.join(names)}"
        )


def needs_vllm(name: str) -> bool:
    """Whether a parser is vLLM's."""
    return name not in _OWN


def tool_parser_names() -> list[str]:
    """All valid names; those of vLLM only where it is installed."""
    return sorted({*_OWN, *vllm_parser_names("tool_parsers")})


def parse_hermes(text: str, tools: Sequence[ToolSchema]) -> tuple[str, list[Call]]:
    """Reads ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``.

    The end of a call that was cut may be missing; a closing tag inside a string of the
    JSON is part of it.
    """
    said, start, rest = text.partition(_HERMES_START)
    calls = []
    while start:
        call, rest = _hermes_call(rest)
        calls.append(call)
        _, start, rest = rest.partition(_HERMES_START)
    return said, calls


def _hermes_call(text: str) -> tuple[Call, str]:
    """The call that ``text`` begins with, and what follows it."""
    raw, _, rest = text.partition(_HERMES_END)
    try:
        call, end = _decode_json(text.lstrip())
        after = text.lstrip()[end:].lstrip()
        if after and not after.startswith(_HERMES_END):
            return Call("", raw.strip()), rest
        rest = after.removeprefix(_HERMES_END)
        name, arguments = call["name"], json.dumps(call["arguments"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Call("", raw.strip()), rest
    return Call(name if isinstance(name, str) else "", arguments), rest


def _parse_harmony(text: str, tools: Sequence[ToolSchema]) -> tuple[str, list[Call]]:
    said, calls = parse_harmony(text)
    return said, [Call(*call) for call in calls]


_OWN: dict[str, ToolParser] = {
    "hermes": parse_hermes,
    "qwen3_json": parse_hermes,
    "openai": _parse_harmony,
}


class _WithMalformed:
    """Reports calls that a parser of vLLM's cannot read, or not as they were written.

    By itself such a parser says the first kind aloud. If a call was cut, or holds a tag
    in an argument, it fills the arguments with a part of what is there.
    """

    def __init__(self, parser: VLLMToolParser, marks: CallMarks) -> None:
        self._parser, self._marks = parser, marks

    def __call__(
        self, text: str, tools: Sequence[ToolSchema]
    ) -> tuple[str, list[Call]]:
        starts = [found.start() for found in self._marks.start.finditer(text)]
        end, tags = self._marks.end, self._marks.tags
        if not starts and not (end and end in text):
            return text, []
        if self._marks.nesting.is_too_deep(text):
            first = starts[0] if starts else 0
            return text[:first], [Call("", text[first:].strip())]
        said, calls = self._parser(text, tools)
        if not starts:  # that of the first was left out, which some parsers forgive
            if not calls:
                return text, []
            starts = [0]
        written = text[starts[0] :]
        if not calls or (tags is not None and not tags.fit(written, calls)):
            return text[: starts[0]], [Call("", written.strip())]
        read = [Call(*call) for call in calls]
        if end not in text[starts[-1] :]:
            read[-1] = Call("", text[starts[-1] :].strip())
        return said, read


def decode_twice(arguments: str) -> str:
    """``arguments``, or the object that they hold as a JSON string."""
    try:
        inner = json.loads(arguments)
        if isinstance(inner, str) and isinstance(json.loads(inner), dict):
            return inner
    except (ValueError, RecursionError):
        pass
    return arguments
