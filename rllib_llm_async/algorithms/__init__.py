"""The algorithms, by the names that RLlib and Tune know them under."""

from __future__ import annotations

import difflib

from rllib_llm_async.algorithms.async_decoupled_ppo import (
    AsyncDecoupledPPO,
    AsyncDecoupledPPOConfig,
)
from rllib_llm_async.algorithms.ppo_ewma_async import PPOEWMAAsync, PPOEWMAAsyncConfig

_CONFIGS = {
    "AsyncDecoupledPPO": AsyncDecoupledPPOConfig,
    "PPOEWMAAsync": PPOEWMAAsyncConfig,
}


def get_config_class(name: str) -> type[AsyncDecoupledPPOConfig]:
    """Returns the config class of an algorithm.

    Raises:
        ValueError: If the name is unknown; names the nearest valid one.
    """
    if name not in _CONFIGS:
        near = difflib.get_close_matches(name, _CONFIGS, n=1, cutoff=0.0)
        raise ValueError(
            f"run: unknown algorithm {name!r}, did you mean {near[0]!r}? "
            f"Valid: {', '.join(_CONFIGS)}"
        )
    return _CONFIGS[name]


__all__ = [
    "AsyncDecoupledPPO",
    "AsyncDecoupledPPOConfig",
    "PPOEWMAAsync",
    "PPOEWMAAsyncConfig",
    "get_config_class",
]
