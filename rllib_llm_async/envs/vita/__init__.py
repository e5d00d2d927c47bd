"""VitaBench (arXiv 2509.26490) as a task suite.

The benchmark's own package brings tasks, tools, prompts and the judge's procedure; it
is installed by the user (docs/vitabench.md). Only `suite` and `package` may be imported
without it.
"""

from rllib_llm_async.envs.vita.suite import VitaSuite

__all__ = ["VitaSuite"]
