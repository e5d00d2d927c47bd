from rllib_llm_async.algorithms.ppo_ewma_async.ppo_ewma_async import (
    PPOEWMAAsync,
    PPOEWMAAsyncConfig,
)

__all__ = ["PPOEWMAAsync", "PPOEWMAAsyncConfig"]
