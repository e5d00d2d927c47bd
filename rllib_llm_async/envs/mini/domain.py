"""What the bundled domains share: one task, its tools, user and verdict.

A domain is one file with a subclass of `Domain`: it draws a task from a seeded
generator, states the policy, answers tool calls and user questions, and knows the
changes that a perfect agent makes.

The texts are written for a model of a million weights: a key stands before its value
("desk2 shipped"), and the demonstrator says the two numbers that a decision compares,
and how they compare ("44 of 40 over"), before it decides.
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
from rllib_llm_async.envs.mini.consent import asks_to_confirm, named, question

STOP = "###STOP###"
#: A result is told in a message with one of these words.
OUTCOMES = "done|cannot|kept|transferred"
#: Messages the user does not understand before giving up.
MAX_UNCLEAR = 2

_UNCLEAR = ("sorry, i do not understand.", "what do you mean?", "pardon?")
_NOT_THAT = ("no, not that.", "no, i mean something else.", "that is wrong.")
_YES = (
    "yes.",
    "yes, please.",
    "yes, go on.",
    "sure, go ahead.",
    "that is right.",
    "ok, do it.",
)
_NO = (
    "no, leave it.",
    "no, better not.",
    "no, thanks.",
    "stop, i do not want that.",
    "never mind then.",
)
_FAREWELLS = (
    "ok.",
    "thanks.",
    "alright, bye.",
    "great, thank you.",
    "good, that was all.",
)

#: A demonstrator yields assistant messages and receives the environment's answers.
Demonstrator = Generator[Message, list[Message], None]


class ToolError(Exception):
    """A tool refuses; its text is what the agent reads."""


@dataclass(frozen=True)
class Tool:
    """A function of the agent, and when the policy allows it.

    Attributes:
        parameters: JSON types by name.
        changes: Whether it is an action rather than a look-up.
        consent: Kinds of things, keys of `Domain.kinds`, that the agent must name when
            it asks the user first; empty if it need not ask.
        after: Facts that the user must have told before.
    """

    name: str
    description: str
    parameters: dict[str, str]
    changes: bool = False
    consent: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

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

    Subclasses set, in `_draw`, what the user knows and what is right:

    - ``must_read``: look-ups as "tool:argument", in the order that the policy gives;
    - ``must_learn``: facts that the user must have told before the agent asks for
      consent or tells a result, ``must_hear``: those due before a result alone;
    - ``must_read_last``: look-ups due by the end alone;
    - ``must_change``: actions as "tool:argument:argument", in their order;
    - ``must_offer``: what the agent must ask consent for if the user then declines;
    - ``must_say``: by kind what each message with a result must name, in order;
    - ``due_changes``: how many actions come before each of them; all if empty.

    All that together tells one task from another; the user's wording does not.

    Args:
        rng: Draws the task; equal generators give equal tasks.
    """

    name: ClassVar[str]
    tools: ClassVar[tuple[Tool, ...]]
    #: By kind the regular expression of the things that messages name.
    kinds: ClassVar[dict[str, str]]

    def __init__(self, rng: random.Random) -> None:
        self.db: dict[str, Any] = {}
        self.agrees = True
        self.must_read: list[str] = []
        self.must_learn: list[str] = []
        self.must_hear: list[str] = []
        self.must_read_last: list[str] = []
        self.must_change: list[str] = []
        self.must_offer: dict[str, str] = {}
        self.must_say: list[dict[str, str]] = []
        self.due_changes: list[int] = []
        self._draw(rng)
        #: The task's content in canonical form.
        self.signature = json.dumps(vars(self), sort_keys=True)
        self._wording = random.Random(rng.random())
        self.calls: list[str] = []
        self.changes: list[str] = []
        #: What the user told, by the names used in ``must_learn``.
        self.learned: set[str] = set()
        #: What the user's last words agreed to, and what they ever declined.
        self.agreed: dict[str, str] = {}
        self.declined: dict[str, str] = {}
        self.results: list[str] = []
        #: Sentences of the policy that the agent broke.
        self.breaches: set[str] = set()
        self.ended = False
        self._is_asked = False
        self._num_unclear = 0
        self.first_message = self._opening()

    # --- To be written per domain -------------------------------------------------

    @abstractmethod
    def _draw(self, rng: random.Random) -> None:
        """Draws database, hidden facts and what is right."""

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
    def naming(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        """By kind what the agent must name before it calls this tool."""

    @abstractmethod
    def demonstrate(self, flaws: Flaws) -> Demonstrator:
        """Plays the task, as well as ``flaws`` allow."""

    def wish(self) -> dict[str, str]:
        """By kind what the user has in mind; another offer is turned down."""
        return {}

    def true_offer(self) -> dict[str, str]:
        """By kind what an offer must name that the user is about to think over."""
        return {}

    def think_again(self) -> str | None:
        """What the user says to an offer instead of yes or no."""
        return None

    def go_on(self) -> str:
        """What the user says to a result that is not the last one: they dispute it."""
        return self.vary(
            "but i really need it!",
            "are you sure?",
            "please make an exception for me.",
            "that is not fair.",
            "can you not do anything about it?",
        )

    # --- Tools --------------------------------------------------------------------

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
        call = ":".join([name, *(str(arguments[p]) for p in tool.parameters)])
        self._check_order(tool)
        self.calls.append(call)
        if tool.changes:
            self.changes.append(call)
        if tool.consent:
            if not self.naming(name, arguments).items() <= self.agreed.items():
                self.breaches.add("consent")
            # One yes is for one change.
            self.agreed = {}
        return result

    def _check_order(self, tool: Tool) -> None:
        reads = [call.partition(":")[0] for call in self.must_read]
        before = len(reads) if tool.changes else 0
        if tool.name in reads:
            before = reads.index(tool.name)
        if not set(self.must_read[:before]) <= set(self.calls):
            self.breaches.add("look-up first")
        if not set(tool.after) <= self.learned:
            self.breaches.add("question first")

    # --- User ---------------------------------------------------------------------

    def vary(self, *phrases: str) -> str:
        """One of several ways in which the user says the same."""
        return self._wording.choice(phrases)

    def tell(self, fact: str, *phrases: str) -> str:
        """The user's words for a fact that the agent knows from now on."""
        if fact in self.learned and self._is_asked:
            self.breaches.add("asked again")
        self.learned.add(fact)
        return self.vary(*phrases)

    def hear(self, text: str) -> str:
        """The user's reply to the agent's text."""
        text = text.lower()
        # A yes holds until the agent says something else.
        self.agreed = {}
        self._is_asked = "?" in text
        if asks_to_confirm(text):
            reply = self._weigh(question(text))
        elif not self._is_asked and self._is_result(text):
            reply = self._hear_result(text)
        else:
            reply = self.answer(text)
            if reply is None and self._is_result(text):
                reply = self._hear_result(text)
        if reply is not None:
            return reply
        self._num_unclear += 1
        if self._num_unclear > MAX_UNCLEAR:
            return self.leave("i give up.")
        return self.vary(*_UNCLEAR)

    def leave(self, text: str) -> str:
        """Ends the dialogue with the user's last words."""
        self.ended = True
        return f"{text} {STOP}"

    def _weigh(self, offer_text: str) -> str | None:
        """The user's answer to a question whether something may be changed."""
        offer = named(offer_text, self.kinds)
        if not any(t.consent and offer.keys() >= {*t.consent} for t in self.tools):
            return None
        if any(offer.get(kind, x) != x for kind, x in self.wish().items()):
            return self.vary(*_NOT_THAT)
        if not self.is_prepared():
            self.breaches.add("confirmed too early")
        if not self.true_offer().items() <= offer.items():
            self.breaches.add("false offer")
        if (other := self.think_again()) is not None:
            return other
        if self.agrees:
            self.agreed = offer
            return self.vary(*_YES)
        self.declined = offer
        return self.vary(*_NO)

    def _is_result(self, text: str) -> bool:
        return re.search(rf"\b({OUTCOMES})\b", text) is not None

    def _hear_result(self, text: str) -> str:
        due = self.due_changes or [len(self.must_change)] * len(self.must_say)
        is_due = len(self.changes) >= due[len(self.results)]
        has_heard = set(self.must_hear) <= self.learned
        if not (is_due and has_heard and self.is_prepared()):
            self.breaches.add("result too early")
        self.results.append(text)
        told = len(self.results)
        if told < len(self.must_say) and self.has_told(told - 1):
            return self.go_on()
        return self.leave(self.vary(*_FAREWELLS))

    # --- Verdict ------------------------------------------------------------------

    def is_prepared(self) -> bool:
        """Whether all was read and asked that the policy orders before a decision."""
        return (
            set(self.must_read) <= set(self.calls)
            and set(self.must_learn) <= self.learned
        )

    def has_told(self, number: int) -> bool:
        """Whether that result was told in words that name it and nothing else."""
        expected = self.must_say[number]
        kinds = {**self.kinds, "outcome": OUTCOMES}
        told = named(self.results[number], {kind: kinds[kind] for kind in expected})
        return told == expected

    def has_communicated(self) -> bool:
        """Whether each result was told, and none that there is not."""
        return len(self.results) == len(self.must_say) and all(
            map(self.has_told, range(len(self.results)))
        )

    def has_changed_rightly(self) -> bool:
        """Whether each action was taken once, in order, and no other."""
        return self.changes == self.must_change

    def has_kept_to_policy(self) -> bool:
        """Whether no sentence was broken, and everything was asked by the end."""
        return (
            not self.breaches
            and self.is_prepared()
            and set(self.must_hear) <= self.learned
            and set(self.must_read_last) <= set(self.calls)
            and self.must_offer.items() <= self.declined.items()
        )

    def verdict(self) -> dict[str, float]:
        """1.0 or 0.0 per check; the task is solved if all hold."""
        return {
            "state": float(self.has_changed_rightly()),
            "communicate": float(self.has_communicated()),
            "policy": float(self.has_kept_to_policy()),
        }


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
