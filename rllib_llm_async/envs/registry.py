"""Task suites by name; `register_suite` adds one of your own."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from rllib_llm_async.envs.agent_env import TaskSuite
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.mini_vita import MiniVitaSuite

SuiteFactory = Callable[..., TaskSuite]

_SUITES: dict[str, SuiteFactory] = {
    suite.name: suite for suite in (MiniTau2Suite, MiniVitaSuite, MiniMixtureSuite)
}


def register_suite(name: str, factory: SuiteFactory) -> None:
    """Makes ``env: name`` mean ``factory(**env_config)``.

    Raises:
        ValueError: If the name is taken.
    """
    if name in _SUITES:
        raise ValueError(f"env {name!r} is registered already")
    _SUITES[name] = factory


def suite_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_SUITES)


def make_suite(name: str, env_config: Mapping[str, Any] | None = None) -> TaskSuite:
    """Builds a suite.

    Raises:
        ValueError: If the name or a key of ``env_config`` is unknown.
    """
    if name not in _SUITES:
        near = difflib.get_close_matches(name, _SUITES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"env: unknown environment {name!r}, did you mean {near!r}? "
            f"Valid: {', '.join(suite_names())}"
        )
    try:
        return _SUITES[name](**(env_config or {}))
    except TypeError as error:
        raise ValueError(f"env_config of {name!r}: {error}") from error
