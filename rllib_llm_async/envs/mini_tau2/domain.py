"""What the domains of mini_tau2 share: one task, its tools, user and verdict.

A domain is one file with a subclass of `Domain`: it draws a task from a seeded
generator, states the policy, answers tool calls and user questions, and knows the
database that a perfect agent leaves behind.
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
OUTCOME_WORDS = ("done", "cannot", "kept")
#: Messages the user does not understand before giving up.
MAX_UNCLEAR = 2

#: A demonstrator yields assistant messages and receives the environment's answers.
Demonstrator = Generator[Message, list[Message], None]


class ToolError(Exception):
    """A tool refuses; its text is what the agent reads."""


@dataclass(frozen=True)
class Tool:
    """Name, JSON types of the parameters and whether the database changes."""

    name: str
    description: str
    parameters: dict[str, str]
    writes: bool = False

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
        """Whether a question to the user is left out that the policy asks for."""
        return self.rng.random() < self.shortcut_rate

    def slip(self) -> bool:
        """Whether a decision or a calculation goes wrong."""
        return self.rng.random() < self.slip_rate


class Domain(ABC):
    """One task under way.

    Subclasses set, in `_draw`: ``db``, ``golden_db``, ``must_say``, ``must_read`` and
    ``first_message``.

    Args:
        rng: Draws the task; equal generators give equal tasks.
    """

    name: ClassVar[str]
    tools: ClassVar[tuple[Tool, ...]]

    def __init__(self, rng: random.Random) -> None:
        self.db: dict[str, Any] = {}
        self.golden_db: dict[str, Any] = {}
        self.must_say: list[str] = []
        self.must_read: set[str] = set()
        self.first_message = ""
        self.said: list[str] = []
        self.reads: set[str] = set()
        self.violations: list[str] = []
        self.ended = False
        self._confirmed = False
        self._asked_to_confirm = False
        self._num_unclear = 0
        self._draw(rng)

    # --- To be written per domain -------------------------------------------------

    @abstractmethod
    def _draw(self, rng: random.Random) -> None:
        """Draws database, hidden facts and golden state."""

    @abstractmethod
    def policy(self) -> str:
        """The written policy with this task's parameters."""

    @abstractmethod
    def content(self) -> list[Any]:
        """Everything that tells this task from another, as JSON values."""

    @abstractmethod
    def answer(self, text: str) -> str | None:
        """The user's reply to a message in lower case, None if unclear to them."""

    @abstractmethod
    def demonstrate(self, flaws: Flaws, rng: random.Random) -> Demonstrator:
        """Plays the task, as well as ``flaws`` allow."""

    # --- Shared -------------------------------------------------------------------

    def signature(self) -> str:
        """The task's content in canonical form."""
        return json.dumps(self.content(), sort_keys=True)

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
            value = arguments[parameter]
            if type(value) is not python_types[json_type]:
                raise ToolError(f"{parameter} must be a {json_type}")
        if tool.writes:
            self._require_confirmation()
        result = getattr(self, name)(**arguments)
        if not tool.writes:
            self.reads.add(":".join([name, *map(str, arguments.values())]))
        return result

    def hear(self, text: str) -> str:
        """The user's reply to the agent's text."""
        text = text.lower()
        self.said.append(text)
        if "confirm" in text:
            self._asked_to_confirm = True
        reply = self.answer(text)
        if reply is not None:
            return reply
        self._num_unclear += 1
        if self._num_unclear > MAX_UNCLEAR:
            self.ended = True
            return f"i give up. {STOP}"
        return "sorry, i do not understand."

    def verdict(self) -> dict[str, float]:
        """1.0 or 0.0 each for final state, communication and policy."""
        last = self.said[-1] if self.said else ""
        violations = list(self.violations)
        # Without these a constant refusal or a list of keywords would score.
        if sum(word in last for word in OUTCOME_WORDS) != 1:
            violations.append("no single outcome in the last message")
        if not self.must_read <= self.reads:
            violations.append("decided without looking")
        if "kept" in last and not self._asked_to_confirm:
            violations.append("kept without asking")
        everything = " ".join(self.said)
        # "$20" is not said by who says "$200".
        communicated = all(
            re.search(rf"{re.escape(words)}(?!\w)", everything)
            for words in self.must_say
        )
        return {
            "state": float(self.db == self.golden_db),
            "communicate": float(communicated),
            "policy": float(not violations),
        }

    def _require_confirmation(self) -> None:
        if not self._confirmed:
            self.violations.append("changed something without confirmation")
        self._confirmed = False


def text_message(text: str) -> Message:
    """An assistant message to the user."""
    return {"role": "assistant", "content": text}


def tool_message(name: str, **arguments: Any) -> Message:
    """An assistant message with one tool call."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
        ],
    }
