"""`rllib size FILE`: memory and staleness of a job, before it has cost anything."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import open_config

if TYPE_CHECKING:
    from rllib_llm_async.coordination.simulator import Job
    from rllib_llm_async.sizing.memory import JobSize
    from rllib_llm_async.sizing.place import Place

#: Bounds that are compared with that of the file.
_BOUNDS = (0, 1, 2, 4, 8)
#: Durations of an episode, in updates, where neither is known.
_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)


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
    help="What a learner update takes, without waiting.",
)
@click.option(
    "--episode-seconds",
    type=_SECONDS,
    help="What an episode takes in the mean, with all places taken.",
)
@click.option(
    "--spread",
    type=_Range(min=0, max=2),
    default=0.5,
    show_default=True,
    help="Standard deviation of the logarithm of these durations.",
)
def size(
    config_file: Path,
    only: str | None,
    settings: tuple[str, ...],
    update_seconds: float | None,
    episode_seconds: float | None,
    spread: float,
) -> None:
    """Say what memory the job of CONFIG_FILE takes, and how old its tokens will be.

    A run tells what an update takes: phase_seconds/driver/waiting_for_the_update.
    Without the two durations, staleness is told for several ratios of them.
    """
    if (update_seconds is None) != (episode_seconds is None):
        raise InputError("give --update-seconds and --episode-seconds, or neither")
    console = Console()
    with Console(stderr=True).status("reading the file; loading RLlib") as status:
        config = open_config(config_file, only, settings)
        status.update("building the model without its weights, counting its passes")
        taken = _size_of(config)
    _show_memory(console, config, taken)
    click.echo()
    if update_seconds is None or episode_seconds is None:
        console.print(_by_ratio(config, spread))
        return
    from rllib_llm_async.sizing.staleness import job_of

    job = job_of(config, update_seconds, episode_seconds, spread)
    click.echo(_load(job, update_seconds, episode_seconds))
    console.print(_by_bound(job, config.max_staleness))


# --- Memory -----------------------------------------------------------------------


def _size_of(config: Any) -> JobSize:
    from rllib_llm_async.sizing.memory import size_of

    try:
        return size_of(config)
    except ValueError as error:
        raise InputError(str(error)) from error


def _show_memory(console: Console, config: Any, taken: JobSize) -> None:
    in_adapters = f"{_count(taken.num_trained)} trained in adapters"
    click.echo(
        f"{config.model_name_or_path}: {_count(taken.num_parameters)} parameters, "
        f"{'all trained' if config.lora is None else in_adapters}"
    )
    console.print(_memory(taken.places))


def _memory(found: list[Place]) -> Table:
    table = Table("where", "what")
    table.add_column("GB", justify="right")
    for place in found:
        for number, part in enumerate(place.parts):
            table.add_row("" if number else place.where, part.what, _gb(part.nbytes))
        if len(place.parts) > 1:
            table.add_row("", "[bold]together", f"[bold]{_gb(place.nbytes)}")
        table.add_section()
    return table


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:.3g}"


def _count(number: int) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,}"


# --- Staleness --------------------------------------------------------------------


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


def _by_bound(job: Job, bound: int) -> Table:
    table = Table("max_staleness", *_OUTCOME, "updates/h")
    for max_staleness in sorted({*_BOUNDS, bound}):
        name = f"{max_staleness}{' (file)' if max_staleness == bound else ''}"
        *outcome, per_hour = _outcome(replace(job, max_staleness=max_staleness))
        table.add_row(name, *outcome, f"{per_hour:.0f}")
    return table


def _by_ratio(config: Any, spread: float) -> Table:
    from rllib_llm_async.sizing.staleness import job_of

    table = Table("an episode takes", *_OUTCOME)
    for ratio in _RATIOS:
        *outcome, _ = _outcome(job_of(config, 1.0, ratio, spread))
        table.add_row(f"{ratio:g} update{'s' * (ratio > 1)}", *outcome)
    return table


_OUTCOME = ("staleness", "learner waits", "partial rollouts")


def _outcome(job: Job) -> Iterator[Any]:
    from rllib_llm_async.sizing.staleness import simulated

    outcome = simulated(job)
    yield f"{outcome.mean_staleness:.2f}"
    yield f"{outcome.wait_fraction:.0%}"
    yield f"{outcome.multi_version_fraction:.0%}"
    yield outcome.updates_per_hour
