"""Search spaces in a YAML: ``{grid_search: [1.1, 1.2]}`` in place of a value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.settings.check import check_value
from rllib_llm_async.settings.names import nearest

#: Names of `ray.tune`'s functions; the first two take a list of values, the others
#: bounds.
_LISTS = ("grid_search", "choice")
_RANGES = ("uniform", "loguniform", "randint")
_BOUNDS = {
    "uniform": "numbers, the smaller one first",
    "loguniform": "numbers above 0, the smaller one first",
    "randint": "whole numbers, the smaller one first (upper is never drawn)",
}


def is_space(value: Any) -> bool:
    """Whether a setting's value stands for several."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and next(iter(value)) in (*_LISTS, *_RANGES)
    )


def candidates(key: str, value: Any) -> list[Any]:
    """Values to validate: all of a list, both ends of a range, or the value itself.

    Raises:
        InputError: If a space is written wrongly.
    """
    if not is_space(value):
        near = _meant(value)
        if near:
            (name,) = value
            raise InputError(f"config: {key}: {name!r}, did you mean {near!r}?")
        return [value]
    ((kind, arguments),) = value.items()
    if not isinstance(arguments, list) or not arguments:
        raise InputError(f"config: {key}: {kind} needs a list of values")
    if kind in _LISTS:
        return list(arguments)
    number = int if kind == "randint" else int | float
    if not (
        len(arguments) == 2
        and all(isinstance(n, number) and not isinstance(n, bool) for n in arguments)
        and arguments[0] < arguments[1]
        and (kind != "loguniform" or arguments[0] > 0)
    ):
        raise InputError(
            f"config: {key}: got {kind}: {arguments!r}, {kind} needs [lower, upper], "
            "two " + _BOUNDS[kind]
        )
    lower, upper = arguments
    return [lower, upper - 1 if kind == "randint" else upper]


def _meant(value: Any) -> str | None:
    """The space that somebody has written otherwise."""
    if not (isinstance(value, dict) and len(value) == 1):
        return None
    (name,), (arguments,) = value, value.values()
    spaces = (*_LISTS, *_RANGES)
    near = nearest(name, spaces)
    if near is None and isinstance(arguments, list) and len(str(name)) > 2:
        near = next((space for space in spaces if space.startswith(str(name))), None)
    return near


def check_fractions(key: str, value: Any) -> None:
    """Checks that what a range draws between its ends can be as well.

    Raises:
        InputError: For fractions of a setting that is a whole number.
    """
    if is_space(value) and set(value) <= {"uniform", "loguniform"}:
        ((kind, (lower, upper)),) = value.items()
        between = lower + (upper - lower) / math.pi
        try:
            check_value(key, between)
        except ValueError as error:
            raise InputError(
                f"config: {key}: {kind} draws fractions, write randint for whole "
                f"numbers ({error})"
            ) from error


def param_space(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `ray.tune`'s objects in place of the spaces."""
    from ray import tune

    space = {}
    for key, value in config.items():
        if is_space(value):
            ((kind, arguments),) = value.items()
            args = [arguments] if kind in _LISTS else arguments
            value = getattr(tune, kind)(*args)
        space[key] = value
    return space
