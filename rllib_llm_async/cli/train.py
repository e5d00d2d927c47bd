"""`rllib train file YAML`: runs the experiments of a tuned YAML with Ray Tune."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import click

from rllib_llm_async.cli.cluster import num_logical_cpus, ray_cluster
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import (
    Experiment,
    apply_settings,
    build_config,
    choose_experiment,
    load_experiments,
    parse_assignments,
)
from rllib_llm_async.cli.resources import check_resources
from rllib_llm_async.cli.stop import check_stop
from rllib_llm_async.cli.storage import can_resume, check_storage
from rllib_llm_async.cli.sweep import tune_config
from rllib_llm_async.envs.registry import make_suite


@click.group()
def train() -> None:
    """Train from a tuned YAML."""


@train.command("file")
@click.argument("config_file", type=click.Path(path_type=Path))
@click.option("--experiment", "only", metavar="NAME", help="Run this one alone.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE")
@click.option("--stop", "stop", multiple=True, metavar="KEY=VALUE")
@click.option("--storage-path", default="results", show_default=True)
@click.option(
    "--checkpoint-freq",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Iterations between checkpoints; 0: only at the end, or when stopped.",
)
@click.option(
    "--keep-checkpoints",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many of the newest are kept.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(min=-1),
    help="Restarts of a trial from its newest checkpoint, -1 for no limit; by default "
    "what the file says, or 3.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the newest whole checkpoint; --set and --stop beside it change "
    "the run from there on.",
)
@click.option("--wandb", "wandb_project", metavar="PROJECT")
@click.option("--address", help="Address of a running Ray cluster.")
@click.option("--check", is_flag=True, help="Only say whether everything is valid.")
def train_file(
    config_file: Path,
    only: str | None,
    settings: tuple[str, ...],
    stop: tuple[str, ...],
    storage_path: str,
    checkpoint_freq: int,
    keep_checkpoints: int,
    max_failures: int | None,
    resume: bool,
    wandb_project: str | None,
    address: str | None,
    check: bool,
) -> None:
    """Run every experiment of CONFIG_FILE, one after the other.

    --set overrides a setting (training.eps_ti=1.004), --stop a stop criterion
    (training_iteration=5). SIGINT, SIGTERM and SIGUSR1 save a checkpoint and end the
    run with exit code 130, 143 or 138; a second one ends it at once.
    """
    experiments = load_experiments(config_file)
    if only is not None:
        experiments = [choose_experiment(experiments, only)]
    changes = {
        "settings": parse_assignments("--set", settings),
        "stop": parse_assignments("--stop", stop),
    }
    configs = []
    for experiment in experiments:
        if max_failures is not None:
            experiment.max_failures = max_failures
        configs.append(_check(experiment, changes, storage_path))
    if resume and not any(can_resume(storage_path, e.name) for e in experiments):
        raise InputError(
            f"--resume: no interrupted run of {', '.join(e.name for e in experiments)} "
            f"in {storage_path}"
        )
    if wandb_project and importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb: wandb is missing; pip install wandb")
    if address is None:
        for config in configs:
            check_resources(config, {"CPU": num_logical_cpus()}, "this machine")
    if check:
        click.echo(f"{config_file}: valid")
        return

    import ray

    from rllib_llm_async.cli.interruption import StopSignals
    from rllib_llm_async.cli.run_experiment import RunOptions, run_experiment

    options = RunOptions(
        os.path.abspath(storage_path), checkpoint_freq, keep_checkpoints, wandb_project
    )
    signals = StopSignals()
    with signals.handled(), ray_cluster(address):
        signals.install()  # Ray has put its own in place
        there = {"CPU": 0, "GPU": 0, **ray.cluster_resources()}
        for config in configs:
            check_resources(config, there, "the cluster")
        for experiment in experiments:
            # One that was still to come when the command was interrupted starts.
            goes_on = resume and can_resume(storage_path, experiment.name)
            run_experiment(experiment, options, signals, changes if goes_on else None)


def _check(
    experiment: Experiment, changes: dict[str, dict[str, Any]], storage_path: str
) -> Any:
    """Applies what the command says to an experiment; returns its `AlgorithmConfig`."""
    apply_settings(experiment.config, changes["settings"])
    experiment.stop |= changes["stop"]
    check_stop(experiment.stop)
    config = build_config(experiment)
    try:
        make_suite(config.env, config.env_config)
    except ValueError as error:  # a benchmark that is not installed
        raise InputError(error) from error
    tune_config(experiment)
    check_storage(storage_path, experiment.name)
    return config
