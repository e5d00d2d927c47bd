"""Thoughts are the model's own: they are taken out of what it says."""

from __future__ import annotations

import re
from typing import Any, Protocol

from rllib_llm_async.chat.vllm_parsers import make_reasoning_parser

#: What opens and closes a thought, by model family; the first is the most common.
_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)


_NEVER = re.compile(r"(?!)")


class Reasoning(Protocol):
    """Takes thoughts out of turns.

    ``tags`` open and close a thought; None where that is not all there is to it.
    """

    tags: tuple[str, str] | None

    def said(self, text: str, *, opened: bool, call_start: re.Pattern) -> str:
        """``text`` without thoughts; calls stay.

        Args:
            text: A whole turn, or as much of it as was generated.
            opened: Whether the prompt has opened a thought.
            call_start: Finds where a call begins; what looks like a thought behind it
                is part of an argument.
        """
        ...

    def is_opened_by(self, prompt_end: str) -> bool:
        """Whether a prompt with this end has opened a thought."""
        ...

    def closed(self, said: str, *, opened: bool, thought: str = "") -> str:
        """A turn that says ``said`` after a prompt that may have opened a thought.

        Args:
            said: As the template writes it.
            opened: Whether the prompt has opened a thought.
            thought: Before it, if the template does not write that.
        """
        ...


class TaggedThoughts:
    """Thoughts between two tags.

    A closing tag alone ends a thought that began with the turn; an opening tag alone
    begins one that was cut off.
    """

    def __init__(self, start: str, end: str) -> None:
        self.start, self.end = start, end
        self.tags: tuple[str, str] | None = (start, end)

    def said(self, text: str, *, opened: bool, call_start: re.Pattern) -> str:
        if opened and not text.lstrip().startswith(self.start):
            text = text.partition(self.end)[2]
        said = ""
        while True:
            before, start, rest = text.partition(self.start)
            call = call_start.search(text)
            end = text.find(self.end)
            first_call = call.start() if call else len(text)
            if 0 <= end < min(first_call, len(before)):
                said, text = "", text[end + len(self.end) :]
            elif not start or first_call < len(before):
                return said + text
            else:
                said, text = said + before, rest.partition(self.end)[2]

    def is_opened_by(self, prompt_end: str) -> bool:
        return prompt_end.rstrip().endswith(self.start)

    def closed(self, said: str, *, opened: bool, thought: str = "") -> str:
        if thought:
            _, closes, after = said.partition(self.end)
            after = (after if closes else said).lstrip("\n")
            opening = "" if opened else f"{self.start}\n"
            return f"{opening}{thought}\n{self.end}\n\n{after}"
        return f"{self.end}\n\n{said}" if opened and self.end not in said else said


class NoReasoning:
    """Everything is said aloud."""

    tags: tuple[str, str] | None = None

    def said(self, text: str, *, opened: bool, call_start: re.Pattern) -> str:
        return text

    def is_opened_by(self, prompt_end: str) -> bool:
        return False

    def closed(self, said: str, *, opened: bool, thought: str = "") -> str:
        return said


class _VLLMReasoning(NoReasoning):
    """A parser of vLLM's that tells thoughts by more than a pair of tags."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def said(self, text: str, *, opened: bool, call_start: re.Pattern) -> str:
        from vllm.entrypoints.openai.chat_completion.protocol import (
            ChatCompletionRequest,
        )

        request = ChatCompletionRequest(messages=[], model="")
        return self._parser.extract_reasoning(text, request)[1] or ""


def make_reasoning(name: str | None, tokenizer: Any, template: str) -> Reasoning:
    """What takes out the thoughts.

    Args:
        name: vLLM's name of a reasoning parser, whose tags are then taken; "auto" for
            the tags that the template or the vocabulary holds; None for no thoughts.
        tokenizer: Of the model.
        template: Its chat template.

    Raises:
        ValueError: For an unknown name.
    """
    if name is None:
        return NoReasoning()
    if name != "auto":
        parser = make_reasoning_parser(name, tokenizer)
        start, end = parser.reasoning_start_str, parser.reasoning_end_str
        return TaggedThoughts(start, end) if start and end else _VLLMReasoning(parser)
    vocabulary = tokenizer.get_added_vocab()
    for known in (template, vocabulary):
        for start, end in _TAGS:
            if end in known:
                return TaggedThoughts(start, end)
    return TaggedThoughts(*_TAGS[0])


def without_thoughts(text: str) -> str:
    """What a model behind an endpoint says, where the server leaves its thoughts in."""
    for start, end in _TAGS:
        if start in text or end in text:
            thoughts = TaggedThoughts(start, end)
            text = thoughts.said(text, opened=False, call_start=_NEVER).strip()
    return text
