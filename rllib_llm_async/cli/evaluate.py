"""`rllib evaluate CHECKPOINT`: avg@k, pass@k and pass^k per domain; dialogues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rllib_llm_async import result_keys
from rllib_llm_async.cli.checkpoint import WITHOUT_SOURCES, open_checkpoint
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import parse_assignments
from rllib_llm_async.cli.resources import check_resources

#: A limit that nobody meets; episodes have limits of their own.
A_YEAR = 365 * 86_400.0
#: Over the run's settings: the learner only hands weights to the engines, in this
#: process, which has no GPU of Ray's.
EVALUATION: dict[str, Any] = {
    "evaluation_interval": None,
    "evaluation_sample_timeout_s": A_YEAR,
    "num_learners": 0,
    "num_gpus_per_learner": 0,
    "learner_sharding": "none",
    "optimizer_offload": False,
    "attn_implementation": "auto",
    "weight_transport": "auto",
    **WITHOUT_SOURCES,
    "kl_coeff": 0.0,
}
#: Without a terminal.
SECONDS_BETWEEN_LINES = 60.0


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--env", help="Another registered environment than the trained one.")
@click.option("--split", default="test", show_default=True)
@click.option("--num-trials", default=4, show_default=True, help="Trials per task.")
@click.option("--num-tasks", type=int, help="Only the first tasks of the split.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another setting than the run's, such as num_env_runners=1.",
)
@click.option(
    "--transcripts",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write all dialogues: DIR/index.html to read, DIR/dialogues.jsonl as data.",
)
@click.option("--address", help="Address of a running Ray cluster.")
@click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Run code that its settings name, send keys where they say.",
)
def evaluate(
    checkpoint: Path,
    env: str | None,
    split: str,
    num_trials: int,
    num_tasks: int | None,
    settings: tuple[str, ...],
    transcripts: Path | None,
    address: str | None,
    trust_checkpoint: bool,
) -> None:
    """Run every task of a split several times with the agent of CHECKPOINT.

    Prints a table, and as its last line the same as JSON: by domain the share of
    successes (avg@k), the probability that one (pass@k) or all (pass^k) of k trials
    succeed. What follows ± is the standard error over the tasks.

    It needs the CPUs and GPUs of the run's engines, not those of its learners.
    """
    if num_trials < 1:
        raise InputError(f"--num-trials {num_trials}: must be 1 or more")
    if num_tasks is not None and num_tasks < 1:
        raise InputError(f"--num-tasks {num_tasks}: must be 1 or more")
    trained = open_checkpoint(checkpoint, trust=trust_checkpoint)
    config = trained.config(env, {**EVALUATION, **parse_assignments("--set", settings)})
    weights = trained.weights()
    from rllib_llm_async.envs.registry import make_suite
    from rllib_llm_async.envs.tasks import tasks_of

    try:
        tasks_of(make_suite(config.env, config.env_config), split)
    except ValueError as error:
        raise InputError(error) from error
    if transcripts is not None:
        try:
            transcripts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--transcripts {transcripts}: {error.strerror}") from None
    with ray_cluster(address):
        _check_resources(config)
        click.echo("starting the engine ...", err=True)
        algorithm = config.build_algo()
        try:
            try:
                algorithm.load_weights(weights, trained.policy_version)
            except ValueError as error:
                raise InputError(f"{checkpoint}: {error}") from error
            with _progress() as say:
                summary = algorithm.evaluate_tasks(
                    split=split,
                    num_trials=num_trials,
                    num_tasks=num_tasks,
                    num_dialogues=0 if transcripts is None else None,
                    say=say,
                )
        finally:
            algorithm.stop()
    for key, why in (
        (result_keys.NUM_ENV_FAILURES, "their environment kept failing"),
        (result_keys.NUM_UNFINISHED_EPISODES, "they had not ended in time"),
    ):
        if number := summary["env_runners"][key]:
            click.echo(f"{number} episodes left out: {why}", err=True)
    _print_table(summary["domains"], num_trials)
    click.echo(json.dumps(summary["domains"]))
    if transcripts is not None:
        _write_transcripts(transcripts, summary["dialogues"], checkpoint)


def _check_resources(config: Any) -> None:
    """Says what there is not, and what is not free yet."""
    import ray

    none = {"CPU": 0.0, "GPU": 0.0}
    check_resources(config, {**none, **ray.cluster_resources()}, "the cluster")
    try:
        check_resources(config, {**none, **ray.available_resources()}, "what is free")
    except InputError as error:
        click.echo(f"waiting for others to end; {error.message}", err=True)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """How far it is: in place on a terminal, else a line now and again."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("running the tasks ...") as status:
            yield status.update
        return
    click.echo("running the tasks ...", err=True)
    last = time.monotonic()

    def say(text: str) -> None:
        nonlocal last
        if time.monotonic() > last + SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            click.echo(text, err=True)

    yield say


def _write_transcripts(
    directory: Path, episodes: list[dict[str, Any]], checkpoint: Path
) -> None:
    from rllib_llm_async.monitoring import dialogues

    dialogues.write_jsonl(directory / dialogues.FILE_NAME, episodes)
    page = directory / "index.html"
    html = dialogues.render_html(episodes, f"Dialogues of {checkpoint}")
    page.write_text(html, encoding="utf-8", errors="replace")
    click.echo(f"dialogues: {page}", err=True)


def _print_table(domains: dict[str, dict[str, float]], num_trials: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    # With k = 1 all are the same figure; powers of two show the curve well enough.
    ks = [k for k in range(2, num_trials + 1) if k & (k - 1) == 0 or k == num_trials]
    titles = ["tasks", "episodes", f"avg@{num_trials}"]
    titles += ["k", "pass@k", "pass^k"] if ks else []
    table = Table(
        Column("domain", overflow="fold"),
        *(Column(title, no_wrap=True) for title in titles),
        box=SIMPLE_HEAD,
        padding=0,
    )
    for domain, row in sorted(domains.items()):
        first = [domain, str(row["num_tasks"]), str(row["num_episodes"])]
        first.append(_with_error(row, f"avg@{num_trials}"))
        if not ks:
            table.add_row(*first)
        for k in ks:
            figures = (_with_error(row, f"{name}{k}") for name in ("pass@", "pass^"))
            table.add_row(*first, str(k), *figures)
            first = [""] * len(first)
    Console().print(table)


def _with_error(row: dict[str, float], key: str) -> str:
    error = row.get(f"{key}_se")
    return f"{row[key]:.3f}" + ("" if error is None else f" ± {error:.3f}")
