"""mini_tau2: small customer-service tasks with tools, a policy and a scripted user."""

from rllib_llm_async.envs.mini_tau2.suite import MiniTau2Env, MiniTau2Suite

__all__ = ["MiniTau2Env", "MiniTau2Suite"]
