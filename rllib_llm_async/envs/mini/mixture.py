"""All bundled domains as one suite."""

from rllib_llm_async.envs.mini.suite import MiniSuite
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.mini_vita import MiniVitaSuite


class MiniMixtureSuite(MiniSuite):
    """What `mini_tau2` and `mini_vita` hold, the same tasks in the same splits."""

    name = "mini"
    domain_classes = MiniTau2Suite.domain_classes + MiniVitaSuite.domain_classes
