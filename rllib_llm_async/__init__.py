"""Asynchronous PPO for multi-turn LLM agents on RLlib.

``import rllib_llm_async`` is cheap (no torch, Ray or vLLM). Names of algorithms and
environments become known to RLlib and Tune with `register`, which importing any
public name, or the ``rllib`` command, does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_llm_async.algorithms import (
        AsyncDecoupledPPO,
        AsyncDecoupledPPOConfig,
        PPOEWMAAsync,
        PPOEWMAAsyncConfig,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncDecoupledPPO",
    "AsyncDecoupledPPOConfig",
    "PPOEWMAAsync",
    "PPOEWMAAsyncConfig",
    "register",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rllib_llm_async import algorithms

    register()
    return getattr(algorithms, name)


def register() -> None:
    """Registers algorithms and environments with RLlib/Tune; idempotent."""
    from ray.tune.registry import register_env, register_trainable

    from rllib_llm_async import algorithms
    from rllib_llm_async.envs.registry import make_suite, suite_names

    for cls in (algorithms.AsyncDecoupledPPO, algorithms.PPOEWMAAsync):
        register_trainable(cls.__name__, cls)
    for suite in suite_names():
        register_env(suite, lambda ctx, name=suite: make_suite(name, dict(ctx)))
