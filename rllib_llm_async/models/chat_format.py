"""Between chat messages and token ids, append-only and never tokenising twice.

Works with any chat template in the Hermes/Qwen style, where a turn ends with the
tokenizer's eos token and a tool call is ``<tool_call>{json}</tool_call>``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rllib_llm_async.envs.agent_env import Message, ToolSchema

_TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
#: Stands for an assistant turn when only what the template puts after it matters.
_MARKER = "\u241f"


class ChatFormat:
    """Renders new messages, and parses what the model generated.

    Args:
        tokenizer: A `transformers` tokenizer with a chat template.
        template_kwargs: Further variables of the template, e.g.
            ``{"enable_thinking": False}``.
    """

    def __init__(
        self, tokenizer: Any, template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        self.eos_token_id: int = tokenizer.eos_token_id

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        template_kwargs: Mapping[str, Any] | None = None,
        trust_remote_code: bool = False,
    ) -> ChatFormat:
        """Loads the tokenizer of a model directory or hub name."""
        from transformers import AutoTokenizer

        return cls(
            AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code),
            template_kwargs,
        )

    @property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a turn."""
        return [self.eos_token_id]

    def start(self, messages: list[Message], tools: list[ToolSchema]) -> list[int]:
        """Token ids of an episode's first prompt, up to where the agent speaks."""
        return self._encode(
            self._render(messages, tools=tools, add_generation_prompt=True)
        )

    def extend(self, messages: list[Message], *, last_turn: Sequence[int]) -> list[int]:
        """Token ids to append after an agent's turn, up to where it speaks again.

        Args:
            messages: What the environment answered.
            last_turn: The generated ids. If generation was cut before its end, the
                end-of-turn token is put in first.
        """
        rendered = self._render(
            [
                {"role": "user", "content": ""},
                {"role": "assistant", "content": _MARKER},
                *messages,
            ],
            add_generation_prompt=True,
        )
        ids = self._encode(rendered.rpartition(_MARKER)[2])
        if ids[0] != self.eos_token_id:
            raise ValueError(
                "chat template does not end an assistant turn with the eos token "
                f"{self.tokenizer.eos_token!r}"
            )
        ended = len(last_turn) > 0 and last_turn[-1] == self.eos_token_id
        return ids[1:] if ended else ids

    def assistant_turn(self, message: Message) -> list[int]:
        """Token ids that a model would have generated to say ``message``."""
        asked = [{"role": "user", "content": ""}]
        prompt = self._render(asked, add_generation_prompt=True)
        whole = self._render([*asked, message], add_generation_prompt=False)
        turn, eos, _ = whole.removeprefix(prompt).rpartition(self.tokenizer.eos_token)
        return self._encode(turn + eos)

    def parse(self, token_ids: Sequence[int]) -> Message:
        """The assistant message in generated ids.

        Thoughts are the model's own: what stands before ``</think>``, or after a
        ``<think>`` that was cut off, is left out. A tool call that is not a JSON
        object with a name and arguments keeps its raw text as arguments, so that the
        environment can answer with an error.
        """
        ids = list(token_ids)
        if ids and ids[-1] == self.eos_token_id:
            ids.pop()
        text = self.tokenizer.decode(ids)
        text = text.rpartition("</think>")[2].partition("<think>")[0]
        calls = [
            self._parse_call(number, match.group(1))
            for number, match in enumerate(_TOOL_CALL.finditer(text))
        ]
        if not calls:
            return {"role": "assistant", "content": text.strip()}
        return {
            "role": "assistant",
            "content": text[: text.index("<tool_call>")].strip() or None,
            "tool_calls": calls,
        }

    def _parse_call(self, number: int, raw: str) -> dict[str, Any]:
        try:
            call = json.loads(raw)
            name, arguments = call["name"], json.dumps(call["arguments"])
        except (ValueError, KeyError, TypeError, RecursionError):
            name, arguments = "", raw.strip()
        return {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _render(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool,
        tools: list[ToolSchema] | None = None,
    ) -> str:
        return self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.template_kwargs,
        )

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
