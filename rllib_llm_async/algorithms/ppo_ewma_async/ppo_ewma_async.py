"""PPOEWMAAsync: AsyncDecoupledPPO whose pi_old comes from a staleness-aware EWMA.

See `rllib_llm_async.old_logprobs.ppo_ewma_async`; PPO-EWMA is arXiv 2110.00641.
"""

from __future__ import annotations

from ray.rllib.utils.annotations import override

from rllib_llm_async.algorithms.async_decoupled_ppo import (
    AsyncDecoupledPPO,
    AsyncDecoupledPPOConfig,
)


class PPOEWMAAsyncConfig(AsyncDecoupledPPOConfig):
    """Defines a configuration from which a `PPOEWMAAsync` can be built."""

    def __init__(self, algo_class=None) -> None:
        super().__init__(algo_class=algo_class or PPOEWMAAsync)
        self.old_logprob_source = "ppo_ewma_async"


class PPOEWMAAsync(AsyncDecoupledPPO):
    """AsyncDecoupledPPO with ``old_logprob_source="ppo_ewma_async"`` as default."""

    @classmethod
    @override(AsyncDecoupledPPO)
    def get_default_config(cls) -> PPOEWMAAsyncConfig:
        return PPOEWMAAsyncConfig()
