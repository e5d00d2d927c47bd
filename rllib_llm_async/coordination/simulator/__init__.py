"""The loop's decisions against a simulated clock: no engines, no Ray, no waiting.

Runners, engines and the learner are reduced to durations; `Dispatcher` and `Ledger` are
the real ones. A run of thousands of updates takes seconds, so that orderings can be
tried by the thousand, and settings be chosen before a cluster is rented.
"""

from rllib_llm_async.coordination.simulator.job import Job, Outcome
from rllib_llm_async.coordination.simulator.simulation import Simulation

__all__ = ["Job", "Outcome", "Simulation"]
