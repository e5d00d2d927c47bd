"""Regular expressions that an agent wrote, bounded in time and memory.

Some of a few characters, such as ``(.*)*x``, take Python's `re` for ever, and it lets
no other thread run meanwhile. `regex` can be told when to give up.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping

import regex

_MAX_CHARACTERS = 500
#: `regex` unrolls counted repetitions: ``(a{1000}){1000}`` takes 270 MiB.
_MAX_REPETITIONS = 1000
#: Of all texts, between which other threads run, and of a single one.
_MAX_SECONDS, _MAX_SECONDS_PER_TEXT = 2.0, 0.05
_COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")
#: To `re` a brace that counts nothing is a letter; `regex` would match fuzzily.
_OTHER_BRACE = re.compile(r"(?<!\\)\{(?!(?:\d+|\d*,\d*)\})")


def count_matches(pattern: str, texts: Mapping[str, str]) -> dict[str, int]:
    """How often ``pattern`` occurs in each text, where it does, as `re` counts.

    Case is ignored. What is no regular expression is searched for as it stands.

    Raises:
        ValueError: If it would take too much memory.
        TimeoutError: If it takes too long.
    """
    compiled = _compile(pattern)
    deadline = time.monotonic() + _MAX_SECONDS
    counts = {}
    for key, text in texts.items():
        if time.monotonic() > deadline:
            raise TimeoutError("the pattern takes too long")
        # Were other threads to run at every match, it could wait for them every time.
        found = compiled.findall(text, timeout=_MAX_SECONDS_PER_TEXT, concurrent=False)
        if found:
            counts[key] = len(found)
    return counts


def _compile(pattern: str) -> regex.Pattern:
    if len(pattern) > _MAX_CHARACTERS:
        raise ValueError(f"the pattern is longer than {_MAX_CHARACTERS} characters")
    counts = (max(1, *(int(n or 1) for n in c)) for c in _COUNTED.findall(pattern))
    if math.prod(counts) > _MAX_REPETITIONS:
        raise ValueError(f"the pattern repeats more than {_MAX_REPETITIONS} times")
    try:
        re.compile(pattern)
        return regex.compile(_OTHER_BRACE.sub(r"\\{", pattern), regex.IGNORECASE)
    except (re.error, regex.error, RecursionError, OverflowError):
        return regex.compile(regex.escape(pattern), regex.IGNORECASE)
