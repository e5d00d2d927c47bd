from rllib_llm_async.algorithms.async_decoupled_ppo.async_decoupled_ppo import (
    AsyncDecoupledPPO,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.async_decoupled_ppo_config import (
    AsyncDecoupledPPOConfig,
)

__all__ = ["AsyncDecoupledPPO", "AsyncDecoupledPPOConfig"]
