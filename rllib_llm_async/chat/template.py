"""A model's chat template, and what of it is found out by trying.

Templates are programs: whether one shows tools, how it wants calls, and what it
objects to is seen from what it renders, not from a list of models. All of this
happens once, when a `ChatTemplate` is made.
"""

from __future__ import annotations

import inspect
import itertools
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.chat.messages import (
    THOUGHT_KEYS,
    CallStyle,
    orders_to_try,
    prepare,
    prepare_tool,
    with_user_first,
)
from rllib_llm_async.chat.tools_as_text import calls_as_text, describe_tools
from rllib_llm_async.envs.agent_env import Message, ToolSchema
from rllib_llm_async.settings.names import did_you_mean

#: Stands where only its surroundings matter; digits pass through templates unchanged.
MARKER = f"{secrets.randbelow(9 * 10**17) + 10**17}"
ASKED: Message = {"role": "user", "content": ""}
_RESULT = MARKER[::-1]
_PROBE_TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "f",
        "description": f"{MARKER}",
        "parameters": {
            "type": "object",
            "properties": {MARKER: {"type": "string", "description": "a"}},
            "required": [MARKER],
        },
    },
}

#: Orders of messages of which it is remembered what a template leaves out. With every
#: message a dialogue has another one; so many of them take 10 MB.
_MOST_ORDERS = 4096

S = TypeVar("S", str, list[str])


def common_prefix(first: S, second: S) -> S:
    """What both begin with."""
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1], zip(first, second, strict=False)
    )
    return first[: sum(1 for _ in same)]


def call_of(
    name: str, value: str, call_id: str = "call_0", argument: str = "a"
) -> dict[str, Any]:
    """An OpenAI tool call with one argument."""
    function = {"name": name, "arguments": {argument: value}}
    return {"id": call_id, "type": "function", "function": function}


class ChatTemplate:
    """Renders messages to text that `ControlTokens.encode` takes.

    Args:
        tokenizer: A `transformers` tokenizer with a chat template.
        template_kwargs: Further variables of the template.
        control_tokens: Of the tokenizer.

    Raises:
        ValueError: If the template cannot render a question and an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: Mapping[str, Any],
        control_tokens: ControlTokens,
    ) -> None:
        self._tokenizer = tokenizer
        #: Its source.
        self.text: str = tokenizer.chat_template
        #: Further variables of it, by name.
        self.variables = dict(template_kwargs)
        _check_variables(tokenizer, self.variables)
        self._control_tokens = control_tokens
        #: By kinds of messages, see `_leaves_out`; the one used last is at the end.
        self._left_out: OrderedDict[tuple[Any, ...], str | None] = OrderedDict()
        #: How it wants calls; None if it knows none, which are then text.
        self.call_style: CallStyle | None = CallStyle()
        #: Whether it shows the list of tools.
        self.shows_tools = True
        #: Whether messages get an empty one of the user first, where none is.
        self.wants_user_first = False
        answer = {"role": "assistant", "content": MARKER}
        rendered = self.render([ASKED, answer, ASKED], prompt=True)
        if MARKER not in rendered:
            raise ValueError("chat template: does not show what an assistant has said")
        self.call_style = self._find_call_style()
        self.shows_tools = self._finds_tools_shown()
        #: What stands before an assistant's turn.
        self.prompt = self.render([ASKED], prompt=True)
        #: The same in a dialogue.
        self._header = self.render([ASKED, answer], prompt=False).partition(MARKER)[0]
        self.wants_user_first = (
            self._loses_a_lone_system_message() or self._mistakes_a_first_answer()
        )
        #: A call of ``f`` alone, None if the template knows none.
        self.own_call: str | None = None
        if self.call_style is not None:
            call = call_of("f", MARKER)
            self.own_call = self.turn(
                {"role": "assistant", "content": "", "tool_calls": [call]}
            )
        #: Key of a message under which it shows the last thought, None if it does not.
        self.thought_key = self._find_thought_key()

    def unread(self) -> Iterator[tuple[str, str]]:
        """Further variables that it does not mention, each with what may be meant."""
        mentioned = set(re.findall(r"[^\W\d]\w*", self.text))
        for name in self.variables:
            if name not in mentioned:
                yield name, did_you_mean(name, mentioned)

    def render(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool,
        tools: Sequence[ToolSchema] | None = None,
    ) -> str:
        """The messages as text, control tokens in what they say broken up.

        Args:
            messages: As environments give them.
            prompt: Whether the assistant speaks next.
            tools: OpenAI schemas.

        Raises:
            ValueError: If the template refuses them in every order that it might take,
                or a message holds what is no text.
        """
        return self.in_order(messages, prompt=prompt, tools=tools)[1]

    def in_order(
        self,
        messages: Sequence[Message],
        *,
        prompt: bool,
        tools: Sequence[ToolSchema] | None = None,
    ) -> tuple[int, str]:
        """As `render`; before the text, the number of the order in `orders_to_try`."""
        style = self.call_style
        prepared = [
            prepare(message, self._control_tokens, style or CallStyle())
            for message in messages
        ]
        shown = self._control_tokens.break_up_in([*map(prepare_tool, tools or ())])
        if style is None:
            prepared = calls_as_text(prepared)
        if shown and not self.shows_tools:
            prepared = describe_tools(prepared, shown, self.example())
            shown = []
        if self.wants_user_first:
            prepared = with_user_first(prepared)
        refusal = None
        for number, order in enumerate(orders_to_try(prepared)):
            try:
                rendered = self._apply(order, shown or None, prompt)
                lost = self._leaves_out(order)
            # Templates call methods of what they are given, raise at will, recurse.
            except Exception as error:
                refusal = refusal or error
                continue
            if lost is None:
                return number, rendered
            refusal = refusal or ValueError(f"leaves out the {lost} message")
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"chat template: refuses messages of {roles} "
            f"({type(refusal).__name__}: {refusal})"
        ) from refusal

    def _leaves_out(self, messages: list[dict[str, Any]]) -> str | None:
        """The role of a message that is not shown among others in such an order."""
        kinds = tuple(
            (m["role"], bool(m["content"]), bool(m.get("tool_calls"))) for m in messages
        )
        if kinds not in self._left_out:
            self._left_out[kinds] = self._find_left_out(messages)
            if len(self._left_out) > _MOST_ORDERS:
                self._left_out.popitem(last=False)
        self._left_out.move_to_end(kinds)
        return self._left_out[kinds]

    def _find_left_out(self, messages: list[dict[str, Any]]) -> str | None:
        # What an assistant said beside a call, or thought, a template may drop.
        marks = [
            f"{MARKER}{number:06d}" if m["content"] and m["role"] != "assistant" else ""
            for number, m in enumerate(messages)
        ]
        marked = [
            {**message, "content": mark} if mark else message
            for message, mark in zip(messages, marks, strict=True)
        ]
        shown = self._apply(marked, None, False)
        roles = [
            m["role"]
            for m, mark in zip(messages, marks, strict=True)
            if mark not in shown
        ]
        return roles[0] if roles else None

    def turn(self, message: Message) -> str:
        """What follows `prompt` where the assistant says ``message``, to the end."""
        return self._after_prompt(self.render([ASKED, message], prompt=False))

    def _after_prompt(self, rendered: str) -> str:
        prompt = self.render([ASKED], prompt=True)
        if rendered.startswith(prompt):
            return rendered[len(prompt) :]
        header = self._header
        if prompt.startswith(header.rstrip()) and rendered.startswith(header):
            return rendered[len(header) :]
        # A prompt that opens or leaves out a thought, which history does not show so.
        split = self._control_tokens.split
        position = sum(map(len, common_prefix(split(prompt), split(rendered))))
        common = common_prefix(prompt[position:], rendered[position:])
        return rendered[position + len(common.rpartition("\n")[0]) :].lstrip("\n")

    def _apply(
        self, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
    ) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.variables,
        )

    def _find_call_style(self) -> CallStyle | None:
        """The style in which the template shows a call and its result as they are."""
        messages = [
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [call_of("f", MARKER)]},
            {"role": "tool", "tool_call_id": "call_0", "content": _RESULT},
        ]
        for as_text in (False, True):
            for short_ids in (False, True):
                self.call_style = CallStyle(as_text, short_ids)
                try:
                    rendered = self.render(messages, prompt=True)
                except ValueError:
                    continue
                _, shows_call, after = rendered.partition(MARKER)
                # A mapping printed by Python, or text that was made JSON once more.
                mangled = "{'a'" in rendered or '\\"a\\"' in rendered
                if shows_call and _RESULT in after and not mangled:
                    return self.call_style
        return None

    def _find_thought_key(self) -> str | None:
        for key in THOUGHT_KEYS:
            said = {"role": "assistant", "content": MARKER, key: _RESULT}
            try:
                if _RESULT in self.render([ASKED, said], prompt=False):
                    return key
            except ValueError:
                continue
        return None

    def _finds_tools_shown(self) -> bool:
        if self.call_style is None:
            return False
        try:
            return MARKER in self.render([ASKED], prompt=True, tools=[_PROBE_TOOL])
        except ValueError:
            return False

    def _loses_a_lone_system_message(self) -> bool:
        system = {"role": "system", "content": MARKER}
        try:
            rendered = self.render([system], prompt=True)
        except ValueError:
            return False  # said when such messages come
        split = self._control_tokens.split
        opened = split(rendered)[-2:] == split(self.prompt)[-2:]
        return MARKER not in rendered or not opened

    def _mistakes_a_first_answer(self) -> bool:
        """Whether an assistant's message that comes first is shown as another's."""
        answer = {"role": "assistant", "content": MARKER}
        tools = [{**_PROBE_TOOL, "function": {**_PROBE_TOOL["function"]}}]
        tools[0]["function"].update(description="a", parameters={"type": "object"})
        system = {"role": "system", "content": "s"}
        try:
            first = self.render([system, answer, ASKED], prompt=True, tools=tools)
            asked = self.render(
                [system, ASKED, answer, ASKED], prompt=True, tools=tools
            )
            before = self.render([system, ASKED], prompt=False, tools=tools)
        except ValueError:
            return False  # said when such messages come
        if not asked.startswith(before):
            return False
        header = asked.partition(MARKER)[0].removeprefix(before)
        shown = first.partition(MARKER)[0]
        if shown.endswith(header):
            return False
        # An empty thought may stand before an answer, and none before a greeting.
        parts = self._control_tokens.split(header)
        _, opened, speaker = shown.rpartition(parts[1]) if len(parts) > 1 else ("",) * 3
        return not (opened and speaker.startswith(parts[2]))

    def example(self) -> str | None:
        """A call in the template's own way, without the end of the turn."""
        if self.call_style is None:
            return None
        call = call_of("function_name", "value", argument="argument")
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        end = self.turn({"role": "assistant", "content": MARKER}).partition(MARKER)[2]
        return self.turn(message).removesuffix(end)


def _check_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Raises a ValueError for one that would be an argument of the rendering."""
    taken = inspect.signature(tokenizer.apply_chat_template).parameters
    for name in variables:
        if name in taken and name != "documents":  # which templates show
            raise ValueError(
                f"chat_template_kwargs: {name}: an argument of transformers' "
                "apply_chat_template, no variable of a template"
            )
