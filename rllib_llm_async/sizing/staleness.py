"""How old tokens will be: the loop's own decisions on a simulated clock.

With durations that the caller has measured or guesses. See `coordination.simulator`.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_llm_async.coordination.simulator import Job, Outcome

_WARM_UP, _NUM_UPDATES = 10, 60


def job_of(
    config: Any, update_seconds: float, episode_seconds: float, spread: float
) -> Job:
    """A run of a config, in durations.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        update_seconds: Of each update.
        episode_seconds: Mean of the episodes', which are log-normal.
        spread: Standard deviation of their logarithm.
    """
    from rllib_llm_async.coordination.simulator import Job

    middle = math.log(episode_seconds) - spread**2 / 2

    def episode(rng: random.Random) -> float:
        return rng.lognormvariate(middle, spread)

    return Job(
        config.episodes_per_update,
        config.max_staleness,
        config.group_size,
        config.num_env_runners,
        config.num_concurrent_episodes,
        episode_seconds=episode,
        update_seconds=lambda rng: update_seconds,
    )


def simulated(job: Job) -> Outcome:
    """What comes of it once it is under way."""
    from rllib_llm_async.coordination.simulator import Outcome, Simulation

    simulation = Simulation(job)
    simulation.run(_WARM_UP)
    simulation.outcome = Outcome()
    return simulation.run(_NUM_UPDATES)
