"""`rllib lag FILE`: what staleness to expect of a job, before it has cost anything.

The loop's own decisions (`Dispatcher`, `Pacing`) on a simulated clock, with durations
that the caller has measured or guesses.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from rllib_llm_async.cli.experiment_file import open_config

if TYPE_CHECKING:
    from rllib_llm_async.coordination.simulator import Job, Outcome

#: Bounds that are compared with that of the file.
_BOUNDS = (0, 1, 2, 4, 8)
_WARM_UP, _NUM_UPDATES = 10, 60


class _Range(click.FloatRange):
    """That NaN does not pass, nor infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number.", param, ctx)
        return number


_SECONDS = _Range(min=0, min_open=True)


@click.command()
@click.argument("config_file", type=click.Path(path_type=Path))
@click.option("--experiment", "only", metavar="NAME", help="Of a file with several.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option(
    "--update-seconds",
    type=_SECONDS,
    required=True,
    help="What a learner update takes, without waiting.",
)
@click.option(
    "--episode-seconds",
    type=_SECONDS,
    required=True,
    help="What an episode takes in the mean, with all places taken.",
)
@click.option(
    "--spread",
    type=_Range(min=0, max=2),
    default=0.5,
    show_default=True,
    help="Standard deviation of the logarithm of these durations.",
)
def lag(
    config_file: Path,
    only: str | None,
    settings: tuple[str, ...],
    update_seconds: float,
    episode_seconds: float,
    spread: float,
) -> None:
    """Say how old tokens would be in the job of CONFIG_FILE, for several bounds.

    A run tells the update's: phase_seconds/driver/waiting_for_the_update.
    """
    config = open_config(config_file, only, settings)
    job = job_of(config, update_seconds, episode_seconds, spread)
    click.echo(_load(job, update_seconds, episode_seconds))
    Console().print(_table(job, config.max_staleness))


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


def _load(job: Job, update_seconds: float, episode_seconds: float) -> str:
    places = job.num_runners * job.episodes_per_runner
    busy = job.episodes_per_update * episode_seconds / update_seconds
    text = (
        f"{busy:.0f} of {places} places are busy where updates of {update_seconds:g} s "
        f"take {job.episodes_per_update} episodes of {episode_seconds:g} s"
    )
    if busy <= places:
        return text
    return (
        f"{text}: the engines are the limit, and the learner waits "
        f"{1 - places / busy:.0%} of its time"
    )


def _table(job: Job, bound: int) -> Table:
    table = Table(
        *("max_staleness", "staleness", "learner waits"),
        *("partial rollouts", "updates/h"),
    )
    for max_staleness in sorted({*_BOUNDS, bound}):
        outcome = simulated(replace(job, max_staleness=max_staleness))
        table.add_row(
            f"{max_staleness}{' (file)' if max_staleness == bound else ''}",
            f"{outcome.mean_staleness:.2f}",
            f"{outcome.wait_fraction:.0%}",
            f"{outcome.multi_version_fraction:.0%}",
            f"{outcome.updates_per_hour:.0f}",
        )
    return table
