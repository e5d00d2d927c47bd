"""Whether a turn leaves so much open that a tool parser takes minutes over it.

Parsers of vLLM's look for the end of whatever was opened from each beginning anew: a
model that repeats the opening of an argument some hundred times, which weak ones do,
would stop all episodes of an env runner meanwhile.
"""

from __future__ import annotations

import re

#: More is left open by no call that means something.
MAX_OPEN = 64
_TAG = re.compile(r"</?[^<>\s]+>|\[/?[A-Z_]+\]")
_CLOSING = re.compile(r"</|\[/")
_BRACKETS = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}


class Nesting:
    """What calls open and close.

    Args:
        before: What a template writes in a call before an argument's value.
        after: What it writes behind it.
    """

    def __init__(self, before: str, after: str) -> None:
        ahead, behind = _tags(before), _tags(after)
        closing = [tag for tag in ahead if _CLOSING.match(tag)]
        closing += [tag for tag in behind if tag not in ahead]
        # What is on both sides is a quote; what has no end, a mark between two parts.
        opening = [tag for tag in ahead if tag not in {*closing, *behind}]
        opening = opening[: len(closing)]
        self._steps = {
            **_BRACKETS,
            **dict.fromkeys(opening, 1),
            **dict.fromkeys(closing, -1),
        }
        longest_first = sorted(self._steps, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def is_too_deep(self, text: str) -> bool:
        """Whether more than `MAX_OPEN` are open at once somewhere."""
        num_open = 0
        for found in self._pattern.finditer(text):
            num_open = max(0, num_open + self._steps[found.group()])
            if num_open > MAX_OPEN:
                return True
        return False


def _tags(text: str) -> list[str]:
    """The tags in a text, each once; of <function=f>, which calls any, <function=."""
    found = ("".join(tag.partition("=")[:2]) for tag in _TAG.findall(text))
    return list(dict.fromkeys(found))
