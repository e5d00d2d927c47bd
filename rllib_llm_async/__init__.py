"""Asynchronous PPO for multi-turn LLM agents on RLlib.

Importing the package registers its algorithms and environments with RLlib and Tune.
Where Ray is not installed the registration is left out, so that
`rllib_llm_async.core` stays usable with torch alone.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import TYPE_CHECKING, Any

from rllib_llm_async.engine import NO_REGISTRATION
from rllib_llm_async.version import __version__

if TYPE_CHECKING:
    from rllib_llm_async.algorithms import (
        AsyncDecoupledPPO,
        AsyncDecoupledPPOConfig,
        PPOEWMAAsync,
        PPOEWMAAsyncConfig,
    )


__all__ = [
    "AsyncDecoupledPPO",
    "AsyncDecoupledPPOConfig",
    "PPOEWMAAsync",
    "PPOEWMAAsyncConfig",
    "__version__",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rllib_llm_async import algorithms

    return getattr(algorithms, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


@cache
def register() -> None:
    """Tells RLlib and Tune of the algorithms and environments, once.

    Importing the package does it, except for the command `rllib`, which first reads
    what it was given.
    """
    from ray.tune.registry import register_trainable

    from rllib_llm_async import algorithms
    from rllib_llm_async.envs.registry import register_bundled

    for cls in (algorithms.AsyncDecoupledPPO, algorithms.PPOEWMAAsync):
        register_trainable(cls.__name__, cls)
    register_bundled()


if importlib.util.find_spec("ray") is not None and NO_REGISTRATION not in os.environ:
    register()
