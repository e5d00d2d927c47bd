"""`rllib train file YAML`: runs the experiments of a tuned YAML with Ray Tune."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import click

from rllib_llm_async import result_keys
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import (
    Experiment,
    apply_settings,
    build_config,
    choose_experiment,
    load_experiments,
    parse_assignments,
)
from rllib_llm_async.cli.own_files import check_own
from rllib_llm_async.cli.search_space import param_space
from rllib_llm_async.cli.stop import check_stop
from rllib_llm_async.cli.storage import can_resume, check_storage
from rllib_llm_async.cli.sweep import report_sweep, tune_config
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
    "--checkpoint-freq", type=click.IntRange(min=0), default=0, show_default=True
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
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
    resume: bool,
    wandb_project: str | None,
    address: str | None,
    check: bool,
) -> None:
    """Run every experiment of CONFIG_FILE, one after the other.

    --set overrides a setting (training.eps_ti=1.004), --stop a stop criterion
    (training_iteration=5).
    """
    experiments = load_experiments(config_file)
    if only is not None:
        experiments = [choose_experiment(experiments, only)]
    for experiment in experiments:
        apply_settings(experiment.config, parse_assignments("--set", settings))
        experiment.stop |= parse_assignments("--stop", stop)
        check_stop(experiment.stop)
        config = build_config(experiment)
        try:
            make_suite(config.env, config.env_config)
        except ValueError as error:  # a benchmark that is not installed
            raise InputError(error) from error
        tune_config(experiment)
        check_storage(storage_path, experiment.name)
    if resume and not any(can_resume(storage_path, e.name) for e in experiments):
        raise InputError(
            f"--resume: no interrupted run of {', '.join(e.name for e in experiments)} "
            f"in {storage_path}"
        )
    if wandb_project and importlib.util.find_spec("wandb") is None:
        raise InputError("--wandb: wandb is missing; pip install wandb")
    if check:
        click.echo(f"{config_file}: valid")
        return
    with ray_cluster(address):
        for experiment in experiments:
            _run(
                experiment,
                storage_path=os.path.abspath(storage_path),
                checkpoint_freq=checkpoint_freq,
                # One that was still to come when the command was interrupted starts.
                resume=resume and can_resume(storage_path, experiment.name),
                wandb_project=wandb_project,
            )


def _run(
    experiment: Experiment,
    *,
    storage_path: str,
    checkpoint_freq: int,
    resume: bool,
    wandb_project: str | None,
) -> None:
    from ray import tune

    from rllib_llm_async.cli.progress import Progress

    click.echo(
        f"{experiment.name}: {experiment.run} on {experiment.env}, starting (some 20 s "
        "until the first evaluation or episodes of the bundled agent)"
    )
    progress = Progress(experiment.stop.get("training_iteration"))
    callbacks: list[Any] = [progress]
    path = os.path.join(storage_path, experiment.name)
    if wandb_project:
        callbacks.append(_wandb_callback(wandb_project, experiment.name, path))
    # Tune's own tables would interleave with ours.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # On Ctrl-C a trial gets this long to end by itself, then Ray ends it.
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "6")
    if resume:
        check_own(Path(path))
        tuner = tune.Tuner.restore(path, trainable=experiment.run)
    else:
        tuner = tune.Tuner(
            experiment.run,
            param_space={**param_space(experiment.config), "env": experiment.env},
            tune_config=tune_config(experiment),
            run_config=tune.RunConfig(
                name=experiment.name,
                storage_path=storage_path,
                stop=experiment.stop,
                verbose=0,
                callbacks=callbacks,
                checkpoint_config=tune.CheckpointConfig(
                    checkpoint_at_end=True, checkpoint_frequency=checkpoint_freq
                ),
            ),
        )
    results = tuner.fit()
    for result in results:
        if result.error is not None:
            raise click.ClickException(f"trial failed: {_root_cause(result.error)}")
    if not all((result.metrics or {}).get("done") for result in results):
        click.echo("interrupted; the same command with --resume goes on", err=True)
        raise click.Abort
    if experiment.swept:
        report_sweep(Path(path), experiment.swept)
    for result in results:
        held_out = _held_out_success(result)
        if len(held_out) > 1 and not experiment.swept:
            click.echo(f"held-out success: {held_out[0]:.3f} -> {held_out[-1]:.3f}")
        click.echo(f"checkpoint: {result.checkpoint.path}")
        click.echo(f"evaluate:   rllib evaluate {result.checkpoint.path}")
    if wandb_project and os.environ.get("WANDB_MODE") == "offline":
        runs = os.path.join(os.environ.get("WANDB_DIR", path), "wandb", "offline-run-*")
        click.echo(f"W&B:        wandb sync {runs}")
    if not experiment.swept:
        click.echo(f"plots:      rllib report {path}")


def _held_out_success(result: Any) -> list[float]:
    """Success of every evaluation of a trial, that before training first."""
    rows = result.metrics_dataframe
    columns = [
        f"{key}/env_runners/success_rate"
        for key in (result_keys.EVALUATION_AT_START, "evaluation")
    ]
    return [value for key in columns if key in rows for value in rows[key].dropna()]


def _root_cause(error: BaseException) -> str:
    """The last line of what went wrong; the files of the trial hold the rest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _wandb_callback(project: str, group: str, path: str) -> Any:
    from rllib_llm_async.callbacks import WandbLogger

    if not (os.environ.get("WANDB_API_KEY") or Path("~/.netrc").expanduser().exists()):
        os.environ.setdefault("WANDB_MODE", "offline")
    # Ray's processes have the environment of before. Where they log from is removed
    # with the cluster, so that the runs are kept beside the results.
    os.makedirs(path, exist_ok=True)
    return WandbLogger(
        project=project,
        group=group,
        mode=os.environ.get("WANDB_MODE"),
        dir=os.environ.get("WANDB_DIR", path),
    )
