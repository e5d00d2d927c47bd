"""Arguments of the config's methods: unknown ones are explained like a YAML's keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

from rllib_llm_async.settings.check import SETTINGS, check_value
from rllib_llm_async.settings.names import explain

F = TypeVar("F", bound=Callable[..., Any])


def check_arguments(method: Callable[..., Any], keys: Iterable[str]) -> None:
    """Checks that RLlib's method has such arguments.

    Raises:
        TypeError: Says what one that it has not is called here, or the nearest.
    """
    valid = inspect.signature(method).parameters
    for key in keys:
        if key not in valid:
            raise TypeError(f"{method.__name__}(): {explain(key, SETTINGS)}")


def explained(method: F, *checked: str) -> F:
    """RLlib's method, which explains what it does not know.

    Args:
        method: Of `AlgorithmConfig`.
        *checked: Arguments over whose wrong types it would stumble.
    """

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_arguments(method, kwargs)
        for key in {*checked} & {*kwargs}:
            check_value(key, kwargs[key])
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]
