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


def parse_call(call: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Name and arguments of an OpenAI tool call; no arguments if it is malformed."""
    name, written = call["function"]["name"], call["function"]["arguments"]
    try:
        arguments = json.loads(written)
        json.dumps(arguments, ensure_ascii=False).encode()
        is_well_formed = (
            isinstance(name, str)
            and isinstance(arguments, dict)
            and _depth(arguments) <= _MAX_DEPTH
        )
    except (TypeError, ValueError, RecursionError):
        is_well_formed = False
    return encodable(str(name)), arguments if is_well_formed else None


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
