"""`rllib train file YAML`: runs the experiments of a tuned YAML with Ray Tune.

What needs no Ray is looked at before Ray is imported, which takes seconds.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rllib_llm_async.cli.cluster import num_logical_cpus, ray_cluster
from rllib_llm_async.cli.errors import InputError, OneLineErrors
from rllib_llm_async.cli.experiment_file import (
    Experiment,
    apply_settings,
    build_config,
    check_experiment,
    choose_experiment,
    load_experiments,
    parse_assignments,
    with_absolute_models,
)
from rllib_llm_async.cli.run_options import RunOptions
from rllib_llm_async.cli.stop import check_stop
from rllib_llm_async.cli.stop_signals import StopSignals
from rllib_llm_async.cli.storage import can_resume, check_storage, has_begun


@click.group(cls=OneLineErrors)
def train() -> None:
    """Train from a tuned YAML."""


@train.command("file")
@click.argument("config_file", type=click.Path(path_type=Path))
@click.option(
    "--experiment",
    "only",
    metavar="NAME",
    help="Run this one alone; by default all of the file run, one after the other.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting in place of the file's, e.g. eps_ti=1.1, engine.max_num_seqs=32.",
)
@click.option(
    "--stop",
    "stop",
    multiple=True,
    metavar="KEY=VALUE",
    help="When to end, e.g. training_iteration=5, time_total_s=604800.",
)
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
@click.option(
    "--wandb",
    "wandb_project",
    metavar="PROJECT",
    help="Log to this project of Weights & Biases; offline without an account.",
)
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
    storage_path = os.path.expanduser(storage_path)  # not all shells do it after "="
    experiments = load_experiments(config_file)
    if only is not None:
        experiments = [choose_experiment(experiments, only)]
    changes = {
        "settings": parse_assignments("--set", settings),
        "stop": parse_assignments("--stop", stop),
    }
    for experiment in experiments:
        if max_failures is not None:
            experiment.max_failures = max_failures
        with _named(experiment, experiments):
            _check_without_ray(experiment, changes, storage_path)
    _check_options(wandb_project, address)
    if resume:
        _check_that_one_has_begun(experiments, storage_path)
    signals = StopSignals()
    with signals.handled():
        if not check:
            click.echo(f"{config_file.name}: read; loading Ray and RLlib, some 10 s")
        configs = []
        for experiment in experiments:
            with _named(experiment, experiments):
                configs.append(_check(experiment))
        if address is None:
            _check_resources(configs)
        if check:
            for experiment, config in zip(experiments, configs, strict=True):
                _say_warnings(experiment, config)
            click.echo(f"{config_file}: valid")
            return
        freq, keep = checkpoint_freq, keep_checkpoints
        options = RunOptions(os.path.abspath(storage_path), freq, keep, wandb_project)
        click.echo(f"joining {address}" if address else "starting Ray on this machine")
        with ray_cluster(address):
            signals.install()  # Ray has put its own in place
            _check_resources(configs, of_cluster=True)
            _run(experiments, options, signals, changes if resume else None)


def _run(
    experiments: Sequence[Experiment],
    options: RunOptions,
    signals: StopSignals,
    changes: dict[str, dict[str, Any]] | None,
) -> None:
    """One after the other; with ``changes``, those that were begun go on with them."""
    from rllib_llm_async.cli.run_experiment import run_experiment

    for experiment in experiments:
        # One that was still to come when the command was interrupted starts.
        begun = changes and can_resume(options.storage_path, experiment.name)
        run_experiment(experiment, options, signals, changes if begun else None)


def _check_without_ray(
    experiment: Experiment, changes: dict[str, dict[str, Any]], storage_path: str
) -> None:
    """Applies what the command says to an experiment, and checks it value by value."""
    apply_settings(experiment.config, changes["settings"])
    experiment.stop |= changes["stop"]
    check_stop(experiment.stop)
    check_storage(storage_path, experiment.name)
    check_experiment(experiment)
    experiment.config = with_absolute_models(experiment.config)


@contextmanager
def _named(experiment: Experiment, experiments: Sequence[Experiment]) -> Iterator[None]:
    """Says of which of several experiments an error is."""
    try:
        yield
    except InputError as error:
        if len(experiments) == 1:
            raise
        raise InputError(f"{experiment.name}: {error.message}") from error


def _check_options(wandb_project: str | None, address: str | None) -> None:
    for option, value in (("--wandb", wandb_project), ("--address", address)):
        if value is not None and not value.strip():
            raise InputError(f"{option}: got {value!r}, must not be empty")
    if wandb_project and set(wandb_project) & set("/\\#?%:"):
        raise InputError(
            f"--wandb: got {wandb_project!r}, a project's name has none of / \\ # ? % :"
        )
    if wandb_project and importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb: wandb is missing; pip install wandb")


def _check(experiment: Experiment) -> Any:
    """Checks an experiment as a whole; returns its `AlgorithmConfig`."""
    from rllib_llm_async.cli.sweep import tune_config
    from rllib_llm_async.envs.registry import make_suite
    from rllib_llm_async.envs.tasks import tasks_of
    from rllib_llm_async.models.loading import check_weights

    config = build_config(experiment)
    try:
        check_weights(config.model_path, trust_remote_code=config.trust_remote_code)
    except ValueError as error:
        raise InputError(f"config: {error}") from error
    for key in experiment.stop if config.evaluation_interval is None else ():
        if key.startswith("evaluation/"):
            raise InputError(
                f"stop: {key}: there is none with evaluation_interval: null"
            )
    splits = ["train", *(["test"] if config.evaluation_interval else [])]
    try:
        suite = make_suite(config.env, config.env_config)
        for split in splits:
            tasks_of(suite, split)
    except ValueError as error:  # such as a benchmark that is not installed
        raise InputError(error) from error
    tune_config(experiment)
    return config


def _say_warnings(experiment: Experiment, config: Any) -> None:
    """What a run would say of its settings when it starts."""
    from rllib_llm_async.algorithms.async_decoupled_ppo.semantics_guard import (
        config_warnings,
    )

    for warning in config_warnings(config):
        click.echo(f"{experiment.name}: {warning}")


def _check_that_one_has_begun(
    experiments: Sequence[Experiment], storage_path: str
) -> None:
    if not any(has_begun(storage_path, e.name) for e in experiments):
        raise InputError(
            f"--resume: no interrupted run of {', '.join(e.name for e in experiments)} "
            f"in {storage_path}"
        )


def _check_resources(configs: Sequence[Any], *, of_cluster: bool = False) -> None:
    from rllib_llm_async.cli.resources import check_resources

    there, where = {"CPU": float(num_logical_cpus())}, "this machine"
    if of_cluster:
        import ray

        there, where = {"CPU": 0, "GPU": 0, **ray.cluster_resources()}, "the cluster"
    for config in configs:
        check_resources(config, there, where)
