"""Reads what a model wrote, whatever it wrote."""

from __future__ import annotations

import json
from typing import Any

#: Deeper arguments fit no tool, but exhaust the stack of whatever prints them.
_MAX_DEPTH = 20


def encodable(text: str) -> str:
    r"""``text`` with "?" for lone surrogates, which "\ud83d" in JSON stands for.

    They can be neither tokenised nor sent to an endpoint.
    """
    return text.encode(errors="replace").decode()


def parse_call(call: Any) -> tuple[str, dict[str, Any] | None]:
    """Name and arguments of an OpenAI tool call; no arguments if it is malformed.

    One without a name is: a parser gives none to a call that it cannot read.
    """
    try:
        name, written = call["function"]["name"], call["function"]["arguments"]
    except (KeyError, TypeError):
        return "", None
    try:
        arguments = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        arguments = None
    if not (
        isinstance(name, str)
        and name
        and isinstance(arguments, dict)
        and is_well_formed(arguments)
    ):
        arguments = None
    return encodable(str(name)), arguments


def is_well_formed(value: Any) -> bool:
    """Whether what JSON was read as can be kept, printed and sent on."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
        return _depth(value) <= _MAX_DEPTH
    except (ValueError, RecursionError):
        return False


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
