"""Admission just in time against none: a table of jobs on the simulated clock.

python -m benchmarks.admission

``greedy`` starts groups as soon as the staleness bound admits them.
"""

from __future__ import annotations

import math
import random

from rich.console import Console
from rich.table import Table

from benchmarks.row import Row
from rllib_llm_async.coordination.simulator import Job, Outcome, Simulation

WARM_UP, NUM_UPDATES = 20, 150


def _update(rng: random.Random) -> float:
    return rng.gauss(8, 0.5)


def _users(rng: random.Random) -> float:
    """Turns of half a second, and users who take 50 to 400 ms each time."""
    return sum(0.5 + rng.uniform(0.05, 0.4) for _ in range(rng.choice([4, 6, 8, 10])))


def _turns(rng: random.Random) -> float:
    """Like the main job's: three to five turns of one to three seconds."""
    return sum(rng.uniform(1, 3) for _ in range(rng.choice([3, 4, 4, 5])))


def _job(episode_seconds, num_places=256, max_staleness=2, **more) -> Job:
    job = {"update_seconds": _update, "num_runners": 1, **more}
    return Job(
        128,
        max_staleness,
        8,
        episodes_per_runner=num_places // job["num_runners"],
        episode_seconds=episode_seconds,
        **job,
    )


#: Durations in seconds; an update takes eight.
JOBS = {
    "constant 4 s": _job(lambda rng: rng.gauss(4, 0.3)),
    "short 1 s": _job(lambda rng: rng.gauss(1, 0.1)),
    "lognormal 4 s": _job(lambda rng: rng.lognormvariate(1.2, 0.5)),
    "lognormal, bound 4": _job(lambda rng: rng.lognormvariate(1.2, 0.7), 256, 4),
    "Pareto": _job(lambda rng: 2 * rng.paretovariate(2.0)),
    "few places": _job(lambda rng: rng.gauss(3, 0.3), 64),
    "engine bound": _job(lambda rng: rng.gauss(6, 0.3), 64),
    "long 20 s, bound 4": _job(lambda rng: rng.gauss(20, 5), 512, 4),
    "uneven updates": _job(
        lambda rng: rng.gauss(4, 0.5), update_seconds=lambda rng: rng.uniform(4, 12)
    ),
    "1.2 updates long": _job(lambda rng: rng.gauss(9.6, 0.3), 512),
    "main job": _job(_turns),
    "users of 50-400 ms": _job(_users),
    "8 runners": _job(
        lambda rng: rng.lognormvariate(1.2, 0.3),
        num_runners=8,
        install_seconds=lambda rng: rng.uniform(0.1, 0.6),
    ),
}


def measure(job: Job, *, is_greedy: bool, num_updates: int = NUM_UPDATES) -> Outcome:
    """Runs a job and leaves out its beginning."""
    simulation = Simulation(job)
    if is_greedy:
        pacing = simulation.coordinator.dispatcher.pacing
        pacing.start_at = lambda now, look: -math.inf  # type: ignore[method-assign]
    simulation.run(WARM_UP)
    simulation.outcome = Outcome()
    return simulation.run(num_updates)


def run() -> Row:
    """Mean staleness of the main job's tokens, paced against greedy."""
    paced, greedy = (
        measure(JOBS["main job"], is_greedy=is_greedy).mean_staleness
        for is_greedy in (False, True)
    )
    return Row("admission_staleness", paced, "versions", greedy, paced / greedy)


def main() -> None:
    columns = ("job", "", "wait", "staleness", "multi-version", "updates/h")
    table = Table(*columns)
    for name, job in JOBS.items():
        for is_greedy in (True, False):
            outcome = measure(job, is_greedy=is_greedy)
            table.add_row(
                name,
                "greedy" if is_greedy else "paced",
                f"{outcome.wait_fraction:.3f}",
                f"{outcome.mean_staleness:.2f}",
                f"{outcome.multi_version_fraction:.2f}",
                f"{outcome.updates_per_hour:.1f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
