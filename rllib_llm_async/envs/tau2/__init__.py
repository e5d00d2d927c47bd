"""tau2-bench, the real package: dual-control customer service in several domains."""

from rllib_llm_async.envs.tau2.suite import Tau2Suite

__all__ = ["Tau2Suite"]
