"""`rllib numerics FILE`: where log r_d at lag 0 comes from, and an eps_ti for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import open_config

if TYPE_CHECKING:
    from rich.table import Table

    from rllib_llm_async.core.discrepancy import Discrepancy
    from rllib_llm_async.env_runners.numerics import Factor

#: What others have published of a model with 0.5B parameters, by dtype.
_PUBLISHED = "published for 0.5B parameters: 0.0022 in float32, 0.031 in bfloat16"


@click.command()
@click.argument("config_file", type=click.Path(path_type=Path))
@click.option("--experiment", "only", metavar="NAME", help="Of a file with several.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option(
    "--episodes",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="That each engine plays; the tail of a table needs thousands of tokens.",
)
def numerics(
    config_file: Path, only: str | None, settings: tuple[str, ...], episodes: int
) -> None:
    """Say which dtype and which routing of CONFIG_FILE make up log r_d at lag 0.

    Engines and trainers in float32 but for one factor play and score the same tasks
    under the same weights, one after the other; the last row is the file itself.
    """
    config = open_config(config_file, only, settings)
    from rich.console import Console
    from rich.markup import escape
    from transformers.utils.logging import disable_progress_bar

    from rllib_llm_async.env_runners.numerics import factors_of, measure
    from rllib_llm_async.envs.agent_env import EpisodeError

    disable_progress_bar()  # of a loading that takes no time beside the engines
    factors = factors_of(config)
    try:
        found = measure(config, factors, episodes, say=partial(click.echo, err=True))
    except EpisodeError as error:
        raise InputError(f"the environment fails: {error}") from error
    console = Console()
    console.print(table(factors, found))
    for line in conclusions(found, config.eps_ti):
        console.print(escape(line), highlight=False)


def table(factors: Sequence[Factor], found: Sequence[Discrepancy | str]) -> Table:
    """A row for each factor; within 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    titles = ("rms", "mean", "99.9 %", "max")
    result = Table(
        Column("|log r_d| at lag 0", overflow="fold"),
        *(Column(title, no_wrap=True, justify="right") for title in titles),
        Column("tokens", no_wrap=True, justify="right"),
        box=SIMPLE_HEAD,
        padding=0,
    )
    for factor, figures in zip(factors, found, strict=True):
        if isinstance(figures, str):
            result.add_row(escape(f"{factor.name}: not available here: {figures}"))
            continue
        sizes = (figures.rms, figures.mean, figures.quantile, figures.largest)
        result.add_row(
            factor.name, *(f"{x:.1e}" for x in sizes), str(figures.num_tokens)
        )
    return result


def conclusions(found: Sequence[Discrepancy | str], eps_ti: float) -> list[str]:
    """What the last row, that of the file itself, suggests."""
    whole = found[-1]
    if isinstance(whole, str):
        return [f"the engine of the file does not start here: {whole}"]
    return [
        "eps_ti = exp(99.9 % quantile of |log r_d|) = "
        f"{whole.suggested_eps_ti:.8g} keeps "
        f"999 of 1000 fresh tokens of the file; it has {eps_ti:g}",
        _PUBLISHED,
    ]
