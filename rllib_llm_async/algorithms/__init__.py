"""The algorithms, by the names that RLlib and Tune know them under."""

from __future__ import annotations

from rllib_llm_async.algorithms.async_decoupled_ppo import (
    AsyncDecoupledPPO,
    AsyncDecoupledPPOConfig,
)
from rllib_llm_async.algorithms.ppo_ewma_async import PPOEWMAAsync, PPOEWMAAsyncConfig
from rllib_llm_async.settings.names import unknown

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
        raise ValueError(f"run: {unknown(name, _CONFIGS)}")
    return _CONFIGS[name]


__all__ = [
    "AsyncDecoupledPPO",
    "AsyncDecoupledPPOConfig",
    "PPOEWMAAsync",
    "PPOEWMAAsyncConfig",
    "get_config_class",
]
