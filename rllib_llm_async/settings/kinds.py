"""Kinds of values that settings have, and the words that say what is valid."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

Mapping = dict[str, Any]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Level = Literal["token", "turn", "sequence"]
#: "auto", and those of transformers that keep packed sequences apart.
Attention = Literal[
    "auto",
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
]
Resources = dict[str, Amount]


def says(words: str, **limits: Any) -> Any:
    """A required field; ``words`` end the line ``key: got VALUE, must be ...``."""
    return Field(description=words, **limits)


def boolean() -> Any:
    return says("true or false")


def one_of(*names: str, null: bool = False) -> Any:
    return says(f"one of {', '.join(names)}" + (", or null" if null else ""))


def _rising_from_0(schedule: list[list[float]]) -> list[list[float]]:
    steps = [point[0] for point in schedule]
    if steps[0] != 0 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError("not rising from 0")
    return schedule


Schedule = Annotated[
    list[
        Annotated[list[Amount], Field(min_length=2, max_length=2)]
        | tuple[Amount, Amount]
    ],
    Field(min_length=2),
    AfterValidator(_rising_from_0),
]


def _class_or_path(value: Any) -> Any:
    """RLlib takes a class, several, or the dotted path of one."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(v, str) or _is_callback(v) for v in values):
        raise ValueError("neither class nor path")
    return value


def _is_callback(value: Any) -> bool:
    # By name: the front door does not wait for RLlib's import.
    cls = value.func if isinstance(value, partial) else value
    bases = cls.__mro__ if isinstance(cls, type) else ()
    return any(base.__name__ == "RLlibCallback" for base in bases)


ClassOrPath = Annotated[Any, AfterValidator(_class_or_path)]
