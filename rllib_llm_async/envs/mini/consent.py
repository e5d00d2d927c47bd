"""What a message names: the words by which a change is agreed and a result told.

A thing is named by a whole word, so "$20" is not named by "$200". Who lists several
things of a kind has named none of them: a list of all orders or of all amounts agrees
on nothing and tells nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: An amount of money.
AMOUNT = r"\$\d+"

_CONFIRM = re.compile(r"\bconfirm\b")
_END_OF_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n+")


def named(text: str, kinds: Mapping[str, str]) -> dict[str, str]:
    """The things that ``text`` names, by kind; none of a kind of which it names two.

    Args:
        text: In lower case.
        kinds: By kind the regular expression of its things; what a group catches, if
            there is one, is the thing.
    """
    things = {}
    for kind, pattern in kinds.items():
        found = set(re.findall(rf"(?<![\w$])(?:{pattern})(?![.,]?\w)", text))
        if len(found) == 1:
            things[kind] = found.pop()
    return things


def asks_to_confirm(text: str) -> bool:
    """Whether the word occurs."""
    return _CONFIRM.search(text) is not None


def question(text: str) -> str:
    """The one sentence that asks to confirm; empty if several do."""
    asking = [s for s in _END_OF_SENTENCE.split(text) if asks_to_confirm(s)]
    return asking[0] if len(asking) == 1 else ""
