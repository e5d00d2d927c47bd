"""Between chat messages and token ids, append-only and never tokenising twice.

The context of an episode only grows: what the model generated stays as sampled, and
after each turn comes what its template puts there. For templates that only append
(Qwen2.5, Llama 3, Hermes ...) this equals the whole dialogue rendered at once. Others
rewrite what was said before: they drop the thoughts of earlier turns (Qwen3, GLM-4.5,
DeepSeek, gpt-oss, Nemotron), move the list of tools to the last question (Mistral), or
number results through the dialogue (DeepSeek-V3). With those the model goes on seeing
its earlier turns as it said them, thoughts included, and the list of tools where it
first stood: no token that was sampled under one context is trained under another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.chat.messages import (
    as_user,
    by_turns,
    text_of,
    thought_in,
    without_thought,
)
from rllib_llm_async.chat.served_template import ServedTemplate, served_template
from rllib_llm_async.chat.template import ASKED, MARKER, ChatTemplate
from rllib_llm_async.chat.turn_ends import TurnEnd, stand_in, turn_ends
from rllib_llm_async.chat.turn_parser import TurnParser
from rllib_llm_async.envs.agent_env import Message, ToolSchema

#: Ends a text in the vocabularies of many models, whatever their templates say.
_ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
#: Tokens at the end of a prompt among which the opening of a thought would be.
_NUM_PROMPT_TOKENS = 12


class ChatFormat:
    """Renders new messages, and parses what the model generated.

    Args:
        tokenizer: A `transformers` tokenizer with a chat template.
        template_kwargs: Further variables of the template, e.g.
            ``{"enable_thinking": False}``.
        tool_parser: vLLM's name of what reads tool calls; "auto" goes by the template.
        reasoning_parser: vLLM's name of what tells thoughts; "auto" as above, None for
            no thoughts.
        end_token_ids: Further tokens that end a turn.

    Raises:
        ValueError: If the template or a parser cannot be used, with the reason.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: Mapping[str, Any] | None = None,
        *,
        tool_parser: str = "auto",
        reasoning_parser: str | None = "auto",
        end_token_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = tokenizer = _with_one_template(tokenizer)
        self._control_tokens = ControlTokens(tokenizer)
        self._template = ChatTemplate(
            tokenizer, template_kwargs or {}, self._control_tokens
        )
        self._ends = turn_ends(self._template, self._control_tokens)
        self._parser = TurnParser(
            tokenizer, self._template, tool_parser, reasoning_parser
        )
        self.tool_parser = self._parser.name
        ids = self._control_tokens.ids
        #: The token that ends what is said.
        self.eos_token_id: int = ids[self._ends["text"].generated]
        generated = [ids[end.generated] for end in self._ends.values()]
        others = [ids[token] for token in _ENDS_OF_TEXT if token in ids]
        if tokenizer.eos_token_id is not None:
            others.append(tokenizer.eos_token_id)
        #: Tokens that end a turn.
        self.stop_token_ids: list[int] = list(
            dict.fromkeys([*generated, *others, *end_token_ids])
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
        *,
        tool_parser: str = "auto",
        reasoning_parser: str | None = "auto",
    ) -> ChatFormat:
        """Loads the tokenizer of a model directory or hub name.

        Raises:
            OSError: If the model cannot be found or reached.
            ValueError: If it has no tokenizer, and as the class does.
        """
        from transformers import AutoTokenizer, GenerationConfig

        try:
            # Beside a tokenizer with a chat template, Mistral ships one without.
            tokenizer = AutoTokenizer.from_pretrained(
                model, trust_remote_code=trust_remote_code, mistral_format=False
            )
        except ValueError as error:
            raise ValueError(f"model: {model} has no tokenizer ({error})") from error
        try:
            ends = GenerationConfig.from_pretrained(model).eos_token_id or []
        except OSError:  # a model need not have one
            ends = []
        return cls(
            tokenizer,
            template_kwargs,
            tool_parser=tool_parser,
            reasoning_parser=reasoning_parser,
            end_token_ids=[ends] if isinstance(ends, int) else ends,
        )

    def unread_variables(self) -> list[tuple[str, str]]:
        """Those of ``template_kwargs`` that do nothing, each with what may be meant."""
        return [*self._template.unread()]

    def start(self, messages: list[Message], tools: list[ToolSchema]) -> list[int]:
        """Token ids of a dialogue, up to where the agent speaks next.

        What the agent has said in it already is shown as if it had been generated here,
        see `assistant_turn` and `extend`.

        Raises:
            ValueError: If the template refuses the messages.
        """
        opening, turns = by_turns(messages)
        ids = self.as_published(opening, tools)
        for said, answers in turns:
            turn = self.assistant_turn(said)
            ids += turn + self.extend(answers, last_turn=turn, said=said)
        return ids

    def as_published(
        self, messages: list[Message], tools: list[ToolSchema]
    ) -> list[int]:
        """Token ids of a dialogue as the model's template shows it, all at once.

        For a model that is not trained; of one that is, see `start`.

        Raises:
            ValueError: If the template refuses the messages.
        """
        return self._control_tokens.encode(
            self._template.render(messages, prompt=True, tools=tools)
        )

    def extend(
        self,
        messages: list[Message],
        *,
        last_turn: Sequence[int],
        said: Message | None = None,
    ) -> list[int]:
        """Token ids to append after an agent's turn, up to where it speaks again.

        Args:
            messages: What the environment answered.
            last_turn: The generated ids. If generation was cut before its end, or the
                model ended the text rather than the turn, the end-of-turn token is put
                in first.
            said: What `parse` made of ``last_turn``, if it is at hand.

        Raises:
            ValueError: If the template refuses the messages.
        """
        results = [message for message in messages if message["role"] == "tool"]
        end = self._ends["text"]
        turn = stand_in(None)
        if results and "calls" in self._ends:
            end = self._ends["calls"]
            said = self.parse(last_turn) if said is None else said
            messages, turn = _with_their_calls(messages, said)
        after = self._after(turn, messages, end)
        if not after.startswith(end.closing + end.in_history):
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(f"chat template: shows no {roles} after an agent's turn")
        ids = self._encode(after.removeprefix(end.closing))
        control = self._control_tokens.ids
        ends = (control[end.generated], control[end.in_history])
        return ids[1:] if len(last_turn) > 0 and last_turn[-1] in ends else ids

    def assistant_turn(self, message: Message) -> list[int]:
        """Token ids that a model would have generated to say ``message``.

        What it thought, if the message tells, comes before what it says.
        """
        calls = message.get("tool_calls") and "calls" in self._ends
        end = self._ends["calls" if calls else "text"].generated
        thought, plain = thought_in(message), without_thought(message)
        plain["content"] = text_of(message.get("content")).strip()
        if thought and self._template.thought_key:
            plain[self._template.thought_key] = thought
            thought = ""
        text = self._template.turn(plain)
        said, _, _ = text.rpartition(end) if end in text else (text, "", "")
        said = self._parser.closed(said, self._control_tokens.break_up(thought))
        return self._control_tokens.encode(said + end)

    def parse(
        self,
        token_ids: Sequence[int],
        tools: Sequence[ToolSchema] = (),
        *,
        prompt: Sequence[int] | None = None,
    ) -> Message:
        """The assistant message in generated ids.

        Thoughts are the model's own and left out. A tool call that cannot be read keeps
        its raw text as arguments and has no name, so that the environment can answer
        with an error.

        Args:
            token_ids: What was generated.
            tools: On offer; XML formats take the types of arguments from them.
            prompt: What came before, or the end of it: whether a thought is open. By
                default what the template puts after a question.
        """
        ids = list(token_ids)
        while ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        end = None if prompt is None else list(prompt[-_NUM_PROMPT_TOKENS:])
        return self._parser.message(
            self.tokenizer.decode(ids).removesuffix(self._ends["text"].closing),
            tools,
            prompt_end=None if end is None else self.tokenizer.decode(end),
        )

    def served_template(self) -> ServedTemplate:
        """The chat template with which a server shows dialogues as `start` does."""
        return served_template(
            self.tokenizer, self._template, self._ends, self._parser, self.start
        )

    def check_tool_parser(self) -> None:
        """Raises a ValueError if a call as the template writes it cannot be read.

        Imports vLLM for parsers of vLLM's.
        """
        call = self._template.own_call
        if call is not None:
            self._parser.check_reads(self.parse(self._encode(call), prompt=[]), call)

    def _after(self, turn: Message, messages: list[Message], end: TurnEnd) -> str:
        """What a template puts behind a turn, its last `MARKER`."""
        after = self._render_after(turn, messages).rpartition(MARKER)[2]
        system = [text_of(m.get("content")) for m in messages if m["role"] == "system"]
        shown = after.partition(end.in_history)[2]
        if all(self._control_tokens.break_up(text).strip() in shown for text in system):
            return after
        # Some templates put all that the system says first.
        messages = list(map(as_user, messages))
        return self._render_after(turn, messages).rpartition(MARKER)[2]

    def _render_after(self, turn: Message, messages: list[Message]) -> str:
        try:
            return self._template.render([ASKED, turn, *messages], prompt=True)
        except ValueError:
            if len(turn.get("tool_calls", ())) < 2:
                raise
        # One call in a turn is all that some templates show (Llama 3).
        turn = {**turn, "tool_calls": turn["tool_calls"][-1:]}
        return self._template.render([ASKED, turn, *messages], prompt=True)

    def _encode(self, text: str) -> list[int]:
        return self._control_tokens.encode(text)


def _with_their_calls(
    messages: list[Message], said: Message
) -> tuple[list[Message], Message]:
    """Tool results with the ids of their calls, and a turn of those calls."""
    functions = {
        call.get("id", f"call_{number}"): call["function"]["name"]
        for number, call in enumerate(said.get("tool_calls") or ())
    }
    left = iter(functions)
    calls: list[tuple[str, str]] = []
    answered = []
    for message in messages:
        if message["role"] == "tool":
            in_order = next(left, f"call_{len(calls)}")
            call_id = message.get("tool_call_id") or in_order
            name = functions.get(call_id) or message.get("name") or "unknown"
            calls.append((name, call_id))
            message = {**message, "tool_call_id": call_id}
        answered.append(message)
    return answered, stand_in(calls)


def _with_one_template(tokenizer: Any) -> Any:
    """The tokenizer, with that of its named templates which is for tools.

    Raises:
        ValueError: If it has none, or none that could be meant.
    """
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, str):
        return tokenizer
    if not template:
        raise ValueError(
            f"chat template: {type(tokenizer).__name__} has none; give a model "
            "whose tokenizer has a chat template"
        )
    for name in ("tool_use", "default"):  # as transformers and vLLM choose, given tools
        if name in template:
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = template[name]
            return tokenizer
    raise ValueError(
        f"chat template: {type(tokenizer).__name__} has {', '.join(sorted(template))}; "
        "one of them must be named tool_use or default"
    )
