"""Arguments of the config's methods: unknown ones are explained like a YAML's keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

from rllib_llm_async.settings.check import SETTINGS, check_value
from rllib_llm_async.settings.names import explain

F = TypeVar("F", bound=Callable[..., Any])


def check_arguments(
    config: Any, method: Callable[..., Any], keys: Iterable[str]
) -> None:
    """Checks that RLlib's method has such arguments.

    Raises:
        TypeError: Says which other method of the config takes one that it has not, what
            that is called here, or the nearest.
    """
    valid = inspect.signature(method).parameters
    for key in keys:
        if key in valid:
            continue
        others = _methods_that_take(config, key) if key in SETTINGS else []
        if others:
            why = f"{key}: an argument of {' and '.join(others)}"
        else:
            why = explain(key, SETTINGS)
        raise TypeError(f"{method.__name__}(): {why}")


def _methods_that_take(config: Any, key: str) -> list[str]:
    return [
        f"{name}()"
        for name, method in inspect.getmembers(type(config), inspect.isfunction)
        if not name.startswith("_") and key in inspect.signature(method).parameters
    ]


def explained(method: F, *checked: str) -> F:
    """RLlib's method, which explains what it does not know.

    Args:
        method: Of `AlgorithmConfig`.
        *checked: Arguments over whose wrong types it would stumble.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_arguments(self, method, kwargs)
        for key in {*checked} & {*kwargs}:
            check_value(key, kwargs[key])
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]
