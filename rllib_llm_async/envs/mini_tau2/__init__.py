"""mini_tau2: small customer-service tasks with tools, a policy and a scripted user."""

from rllib_llm_async.envs.mini.suite import MiniSuite
from rllib_llm_async.envs.mini_tau2.airline import Airline
from rllib_llm_async.envs.mini_tau2.retail import Retail
from rllib_llm_async.envs.mini_tau2.telecom import Telecom

__all__ = ["MiniTau2Suite"]


class MiniTau2Suite(MiniSuite):
    """Retail, airline and telecom, after tau2-bench."""

    name = "mini_tau2"
    domain_classes = (Retail, Airline, Telecom)
