"""What the bundled domains share: one task, its tools, user and verdict.

A domain is one file with a subclass of `Domain`: it draws a task from a seeded
generator, states the policy, answers tool calls and user questions, and knows the
database that a perfect agent leaves behind.

The texts are written for a model of a million weights: a key stands before its value
("desk2 shipped"), and the demonstrator says the two numbers that a decision compares.
"""

from __future__ import annotations

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from rllib_llm_async.envs.agent_env import Message

STOP = "###STOP###"
#: The last message must name exactly one of these outcomes.
OUTCOME_WORDS = ("done", "cannot", "kept", "transferred")
#: Messages the user does not understand before giving up.
MAX_UNCLEAR = 2

#: A demonstrator yields assistant messages and receives the environment's answers.
Demonstrator = Generator[Message, list[Message], None]


class ToolError(Exception):
    """A tool refuses; its text is what the agent reads."""


@dataclass(frozen=True)
class Tool:
    """Name, JSON types of the parameters and whether the user must agree first."""

    name: str
    description: str
    parameters: dict[str, str]
    needs_consent: bool = False

    def schema(self) -> dict[str, Any]:
        """OpenAI function schema."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {n: {"type": t} for n, t in self.parameters.items()},
                    "required": list(self.parameters),
                    "additionalProperties": False,
                },
            },
        }

    @property
    def signature(self) -> str:
        """Short form, for error messages: name(parameter, ...)."""
        return f"{self.name}({', '.join(self.parameters)})"


@dataclass(frozen=True)
class Flaws:
    """When a demonstrator fails on purpose."""

    rng: random.Random
    shortcut_rate: float = 0.0
    slip_rate: float = 0.0

    def shortcut(self) -> bool:
        """Whether a question or look-up is left out that the policy asks for."""
        return self.rng.random() < self.shortcut_rate

    def slip(self) -> bool:
        """Whether a decision or a calculation goes wrong."""
        return self.rng.random() < self.slip_rate


class Domain(ABC):
    """One task under way.

    Subclasses set, in `_draw`: ``db``, ``golden_db``, ``must_say``, ``must_read`` and
    what the user knows. All of that together tells one task from another; the user's
    wording does not.

    Args:
        rng: Draws the task; equal generators give equal tasks.
    """

    name: ClassVar[str]
    tools: ClassVar[tuple[Tool, ...]]

    def __init__(self, rng: random.Random) -> None:
        self.db: dict[str, Any] = {}
        self.golden_db: dict[str, Any] = {}
        self.must_say: list[str] = []
        self.must_read: list[str] = []
        self._draw(rng)
        #: The task's content in canonical form.
        self.signature = json.dumps(vars(self), sort_keys=True)
        self._wording = random.Random(rng.random())
        self.first_message = self._opening()
        self.said: list[str] = []
        self.reads: set[str] = set()
        self.ended = False
        self.has_asked = False
        self.consents = False
        self.violates_consent = False
        self._num_unclear = 0

    # --- To be written per domain -------------------------------------------------

    @abstractmethod
    def _draw(self, rng: random.Random) -> None:
        """Draws database, hidden facts and golden state."""

    @abstractmethod
    def _opening(self) -> str:
        """What the user says first."""

    @abstractmethod
    def policy(self) -> str:
        """The written policy with this task's parameters."""

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """The user's reply to a message in lower case, None if unclear to them."""

    @abstractmethod
    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        """Plays the task, as well as ``flaws`` allow."""

    # --- Shared -------------------------------------------------------------------

    def vary(self, *phrases: str) -> str:
        """One of several ways in which the user says the same."""
        return self._wording.choice(phrases)

    def call_tool(self, name: str, arguments: dict[str, Any]) -> str:
        """Runs a tool.

        Raises:
            ToolError: For an unknown tool, wrong arguments or a refusal.
        """
        tool = next((tool for tool in self.tools if tool.name == name), None)
        if tool is None:
            raise ToolError("unknown tool")
        if set(arguments) != set(tool.parameters):
            raise ToolError(f"expected {tool.signature}")
        python_types = {"string": str, "integer": int}
        for parameter, json_type in tool.parameters.items():
            if type(arguments[parameter]) is not python_types[json_type]:
                raise ToolError(f"{parameter} must be a {json_type}")
        result = getattr(self, name)(**arguments)
        if tool.needs_consent:
            self.violates_consent |= not self.consents
            self.consents = False
        self.reads.add(":".join([name, *(str(arguments[p]) for p in tool.parameters)]))
        return result

    def hear(self, text: str) -> str:
        """The user's reply to the agent's text."""
        text = text.lower()
        self.said.append(text)
        reply = self.answer(text)
        if reply is not None:
            return reply
        if any(word in text for word in OUTCOME_WORDS):
            return self.leave(self.vary("ok.", "thanks.", "alright, bye."))
        self._num_unclear += 1
        if self._num_unclear > MAX_UNCLEAR:
            return self.leave("i give up.")
        return self.vary("sorry, i do not understand.", "what do you mean?")

    def leave(self, text: str) -> str:
        """Ends the dialogue with the user's last words."""
        self.ended = True
        return f"{text} {STOP}"

    def consent(self, agrees: bool) -> str:
        """The user's answer to a question whether something may be changed."""
        self.has_asked = True
        self.consents = agrees
        if agrees:
            return self.vary("yes.", "yes, please.", "yes, go on.")
        return self.vary("no, leave it.", "no, better not.", "no, thanks.")

    def verdict(self) -> dict[str, float]:
        """1.0 or 0.0 per check; the task is solved if all hold."""
        return {
            "state": float(self.db == self.golden_db),
            "communicate": float(self.has_communicated()),
            "policy": float(
                self.has_looked_up()
                and self.has_single_outcome()
                and not self.violates_consent
            ),
        }

    def has_communicated(self) -> bool:
        """Whether all was said that the user must hear."""
        everything = " ".join(self.said)
        # "$20" is not said by who says "$200".
        return all(
            re.search(rf"{re.escape(words)}(?!\w)", everything)
            for words in self.must_say
        )

    def has_looked_up(self) -> bool:
        """Whether the records were read that decide; a constant refusal did not."""
        return self.reads.issuperset(self.must_read)

    def has_single_outcome(self) -> bool:
        """Whether the last message names one outcome, not a list of keywords."""
        last = self.said[-1] if self.said else ""
        named = [word for word in OUTCOME_WORDS if word in last]
        return len(named) == 1 and (named != ["kept"] or self.has_asked)


def text_message(text: str) -> Message:
    """An assistant message to the user."""
    return {"role": "assistant", "content": text}


def tool_message(name: str, /, aloud: str | None = None, **arguments: Any) -> Message:
    """An assistant message with one tool call, and what the agent notes before it."""
    return {
        "role": "assistant",
        "content": aloud,
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
        ],
    }


def two_digits(rng: random.Random, low: int, high: int) -> int:
    """A number between the tens ``low`` and ``high``, itself not a multiple of ten.

    So the first digit decides a comparison with a multiple of ten.
    """
    return rng.randrange(low, high, 10) + rng.randint(1, 9)
