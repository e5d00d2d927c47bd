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
_BRACKETS = {"{": 1, "[": 1, "(": 1, "}": -1, "]": -1, ")": -1}


class Nesting:
    """What calls open and close.

    Args:
        before: What a template writes in a call before an argument's value.
        after: What it writes behind it.
    """

    def __init__(self, before: str, after: str) -> None:
        ahead, behind = _TAG.findall(before), _TAG.findall(after)
        self._steps = dict(_BRACKETS)
        for tag in {*ahead, *behind}:
            # <function=f> opens a call of any function.
            name, equals, _ = tag.partition("=")
            if tag.startswith(("</", "[/")) or tag not in ahead:
                self._steps[name + equals] = -1
            elif tag not in behind:  # what is on both sides is a quote
                self._steps[name + equals] = 1
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
