"""What a model generated, read as a message: without thoughts, with its calls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rllib_llm_async.chat.closing_tags import CLOSING_TAG, ClosingTags
from rllib_llm_async.chat.harmony import HARMONY_CALL
from rllib_llm_async.chat.nesting import Nesting
from rllib_llm_async.chat.reasoning import make_reasoning
from rllib_llm_async.chat.template import MARKER, ChatTemplate
from rllib_llm_async.chat.tool_parsers import (
    CallMarks,
    decode_twice,
    make_tool_parser,
    parser_of,
    tool_parser_names,
)
from rllib_llm_async.envs.agent_env import Message, ToolSchema

#: What a call opens with.
_OPENING = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]|\{")
_NEVER = re.compile(r"(?!)")


class TurnParser:
    """A tool parser and a reasoning parser, chosen for a template.

    Args:
        tokenizer: Of the model.
        template: Its chat template.
        tool_parser: vLLM's name of one, or "auto".
        reasoning_parser: vLLM's name of one, "auto", or None for no thoughts.

    Raises:
        ValueError: If a parser is unknown, does not go with the model, or cannot be
            told from the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate,
        tool_parser: str,
        reasoning_parser: str | None,
    ) -> None:
        own_call = template.own_call
        #: Of the tool parser.
        self.name = _choose_tool_parser(tool_parser, own_call)
        # Harmony is calls and thoughts in one.
        reasoning = None if self.name == "openai" else reasoning_parser
        self._reasoning = make_reasoning(reasoning, tokenizer, tokenizer.chat_template)
        self._opened = self._reasoning.is_opened_by(template.prompt)
        marks = self._find_marks(tokenizer, template)
        self._call_start = marks.start
        self._parse_calls = make_tool_parser(self.name, tokenizer, marks)

    def message(
        self, text: str, tools: Sequence[ToolSchema], *, prompt_end: str | None
    ) -> Message:
        """The assistant message in a turn.

        Args:
            text: What was generated, without the token that ended it.
            tools: On offer.
            prompt_end: What stood before; None for what stands after a question.
        """
        opened = self._opened
        if prompt_end is not None:
            opened = self._reasoning.is_opened_by(prompt_end)
        text = self._reasoning.said(text, opened=opened, call_start=self._call_start)
        said, calls = self._parse_calls(text, tools)
        said = said.strip()
        if not calls:
            return {"role": "assistant", "content": said}
        return {
            "role": "assistant",
            "content": said or None,
            "tool_calls": [
                {
                    "id": f"call_{number}",
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": decode_twice(call.arguments),
                    },
                }
                for number, call in enumerate(calls)
            ],
        }

    @property
    def thought_tags(self) -> tuple[str, str] | None:
        """What opens and closes a thought, None if thoughts are not told by tags."""
        return self._reasoning.tags

    def closed(self, said: str, thought: str = "") -> str:
        """The turn that says ``said`` after a question: a thought opened is closed.

        Args:
            said: As the template writes it.
            thought: Before it, if the template does not write that.
        """
        return self._reasoning.closed(said, opened=self._opened, thought=thought)

    def check_reads(self, message: Message, own_call: str) -> None:
        """Raises a ValueError if ``message``, parsed from ``own_call``, is not it."""
        calls = message.get("tool_calls", [])
        if [call["function"]["name"] for call in calls] != ["f"]:
            raise ValueError(
                f"tool_parser: {self.name} cannot read a call as the model's chat "
                f"template writes it ({own_call.replace(MARKER, '1')!r}); auto, or one "
                f"of {', '.join(tool_parser_names())}"
            )

    def _find_marks(self, tokenizer: Any, template: ChatTemplate) -> CallMarks:
        own_call = template.own_call
        if own_call is None:
            return CallMarks(re.compile("<tool_call>"), "", Nesting("", ""))
        if self.name == "openai":
            return CallMarks(re.compile(re.escape(HARMONY_CALL)), "", Nesting("", ""))
        # The template may put a thought before it, whether thoughts are told or not.
        thoughts = make_reasoning("auto", tokenizer, tokenizer.chat_template)
        opened = thoughts.is_opened_by(template.prompt)
        call = thoughts.said(
            thoughts.closed(own_call, opened=opened), opened=opened, call_start=_NEVER
        )
        opening = _OPENING.search(call)
        if opening is None or opening.group() == "{":
            start_of_json = re.compile(r"\A\s*(?:\{|<\|python_tag\|>)")
            return CallMarks(start_of_json, "}", Nesting("", ""))
        start = opening.group()
        text = template.turn({"role": "assistant", "content": MARKER})
        end = text.partition(MARKER)[2]

        def write(calls: list[dict[str, Any]]) -> str:
            turn = {"role": "assistant", "content": "", "tool_calls": calls}
            written = template.turn(turn).removesuffix(end)
            return start + written.partition(start)[2]

        before, _, after = call.removesuffix(end).partition(MARKER)
        closing = CLOSING_TAG.findall(after)
        return CallMarks(
            re.compile(re.escape(start)),
            closing[-1] if closing else "",
            Nesting(before, after),
            ClosingTags(write),
        )


def _choose_tool_parser(name: str, own_call: str | None) -> str:
    if own_call is None:
        if name not in ("auto", "hermes"):
            raise ValueError(
                f"tool_parser: got {name!r}, but the model's chat template writes no "
                "calls, which are then text in Hermes style; auto or hermes"
            )
        return "hermes"
    if name != "auto":
        return name
    own_call = own_call.replace(MARKER, "1")
    chosen = parser_of(own_call)
    if chosen is None:
        raise ValueError(
            "tool_parser: auto knows no parser for the calls of this model's chat "
            f"template ({own_call!r}); name the one of vLLM's that reads them: "
            f"{', '.join(tool_parser_names())}"
        )
    return chosen
