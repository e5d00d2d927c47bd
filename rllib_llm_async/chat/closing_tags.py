"""Whether a tool parser's reading accounts for all that was written.

In XML a call cannot say that a closing tag is part of an argument: a parser ends the
argument there and drops what follows without a word. The text then has other numbers of
closing tags than the calls and arguments that were read need.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rllib_llm_async.chat.template import MARKER, call_of

#: What calls and their arguments close with.
CLOSING_TAG = re.compile(r"</[^<>\s]+>|<[^<>\s/]+[|｜]>")


class ClosingTags:
    """The closing tags of calls as a template writes them.

    There are none to count where arguments stand in quotes, as in JSON.

    Args:
        write: Text of a turn of given calls, from where the first begins. A ValueError
            says that the template does not show several.
    """

    def __init__(self, write: Callable[[list[dict[str, Any]]], str]) -> None:
        call, other = call_of("f", MARKER), call_of("g", MARKER, "call_1")
        longer = call_of("f", MARKER)
        longer["function"]["arguments"]["b"] = MARKER
        before, _, after = write([call]).partition(MARKER)
        quoted = before.endswith(('"', "'"))
        #: What the name of an argument cannot hold.
        self._tags = set() if quoted else {*_count(before), *_count(after)}
        one, two_arguments = _count(after), _count(write([longer]))
        try:
            two_calls = _count(write([call, other]))
        except ValueError:
            two_calls = one + one
        #: How many there are of each in a turn, in a call, and in an argument. What
        #: stands before an argument, too, are quotes that not every argument has.
        self._numbers = {
            tag: (
                2 * one[tag] - two_calls[tag],
                two_calls[tag] - two_arguments[tag],
                two_arguments[tag] - one[tag],
            )
            for tag in self._tags & one.keys() - _count(before).keys()
        }

    def fit(self, text: str, calls: Sequence[tuple[str, str]]) -> bool:
        """Whether ``text`` has the closing tags that ``calls`` need.

        Args:
            text: From the first call on.
            calls: Names and arguments as JSON.
        """
        try:
            read = [json.loads(arguments) for _, arguments in calls]
        except (ValueError, RecursionError):
            return True  # malformed, as is seen without this
        names, values = _strings(read)
        if any(tag in name for name in names for tag in self._tags):
            return False
        num_arguments = sum(len(a) for a in read if isinstance(a, dict))
        for tag, (per_turn, per_call, per_argument) in self._numbers.items():
            needed = per_turn + per_call * len(read) + per_argument * num_arguments
            for mark in _marks(tag):
                # What an argument holds, which JSON within it may write otherwise.
                within = sum(len(mark.findall(value)) for value in values)
                if not needed <= len(mark.findall(text)) <= needed + within:
                    return False
        return True


def _marks(tag: str) -> list[re.Pattern]:
    """A closing tag, and what it closes."""
    marks = [re.compile(re.escape(tag))]
    if tag.startswith("</"):
        marks.append(re.compile(rf"<{re.escape(tag[2:-1])}[=>\s]"))
    return marks


def _count(text: str) -> Counter[str]:
    return Counter(CLOSING_TAG.findall(text))


def _strings(value: Any) -> tuple[list[str], list[str]]:
    """All keys and all other strings in JSON-like data."""
    if isinstance(value, str):
        return [], [value]
    names = list(value) if isinstance(value, dict) else []
    values: list[str] = []
    inner = value.values() if isinstance(value, dict) else value
    for one in inner if isinstance(value, dict | list) else ():
        more_names, more_values = _strings(one)
        names += more_names
        values += more_values
    return names, values
