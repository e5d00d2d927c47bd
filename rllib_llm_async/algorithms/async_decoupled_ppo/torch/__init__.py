from rllib_llm_async.algorithms.async_decoupled_ppo.torch.async_decoupled_ppo_torch_learner import (  # noqa: E501
    AsyncDecoupledPPOTorchLearner,
)

__all__ = ["AsyncDecoupledPPOTorchLearner"]
