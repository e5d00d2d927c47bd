"""A mapping checked by a pydantic model; the first fault becomes one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rllib_llm_async.settings.names import did_you_mean

S = TypeVar("S", bound=BaseModel)

#: Numbers are numbers: no text that looks like one, no bool, no NaN, no infinity.
STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refused(key: str, value: object, valid: str) -> ValueError:
    """The error for a setting that cannot be: key, value and what would be valid."""
    return ValueError(f"{key}: got {value!r}, must be {valid}")


def read_settings(cls: type[S], settings: Any, key: str) -> S:
    """Validates the mapping that stands under ``key``.

    Raises:
        ValueError: For the first setting that cannot be.
    """
    if not isinstance(settings, Mapping):
        raise refused(key, settings, "a mapping with " + ", ".join(cls.model_fields))
    try:
        return cls.model_validate(dict(settings))
    except ValidationError as error:
        fault = first_fault(cls, error, settings, prefix=f"{key}.")
    raise fault


def first_fault(
    cls: type[BaseModel],
    error: ValidationError,
    settings: Mapping[str, Any],
    *,
    prefix: str = "",
    only: str | None = None,
) -> ValueError:
    """The first of pydantic's errors as ours, or the first of one field.

    The description of a field, where it has one, says what is valid.
    """
    faults = error.errors(include_url=False)
    fault = next(f for f in faults if only is None or f["loc"][0] == only)
    name = str(fault["loc"][0])
    key = prefix + name
    if fault["type"] == "extra_forbidden":
        return ValueError(f"{key}: unknown{did_you_mean(name, cls.model_fields)}")
    if fault["type"] == "missing" and len(fault["loc"]) == 1:
        return ValueError(f"{key}: missing")
    described = cls.model_fields[name].description
    if described is not None:
        return refused(key, settings[name], described)
    key = prefix + ".".join(map(str, fault["loc"]))
    message = fault["msg"].removeprefix("Value error, ").replace("Input should", "must")
    if not cls.model_fields[name].repr:  # may be a secret in the wrong place
        return ValueError(f"{key}: {message}")
    return ValueError(f"{key}: got {fault['input']!r}, {message}")
