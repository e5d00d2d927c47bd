"""One experiment under Ray Tune: started or gone on with, and what it ended with."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from ray.tune import TuneError

from rllib_llm_async import result_keys
from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import read_metrics
from rllib_llm_async.cli.experiment_file import Experiment, build_config
from rllib_llm_async.cli.interruption import SaveAndEnd
from rllib_llm_async.cli.own_files import check_own
from rllib_llm_async.cli.progress import Progress, one_line
from rllib_llm_async.cli.resources import trials_beside_served_models
from rllib_llm_async.cli.resume import Changes, prepare_resume
from rllib_llm_async.cli.run_options import RunOptions
from rllib_llm_async.cli.search_space import param_space
from rllib_llm_async.cli.stop_signals import StopSignals
from rllib_llm_async.cli.sweep import report_sweep, tune_config


class OutOfSpace(click.ClickException):
    """A disk was full in a way that a run cannot go on with."""

    exit_code = 3


def run_experiment(
    experiment: Experiment,
    options: RunOptions,
    signals: StopSignals,
    changes: dict[str, Any] | None = None,
) -> None:
    """Runs all trials of an experiment and says what came out.

    Args:
        experiment: Checked.
        options: Storage, checkpoints and logging.
        signals: Handled by the caller.
        changes: `settings` and `stop` of the command if it goes on with a run.

    Raises:
        click.ClickException: If a trial failed or has no checkpoint.
        SystemExit: If a signal stopped it; its code is 128 and the signal's number.
    """
    click.echo(
        f"{experiment.name}: {experiment.run} on {experiment.env}\n"
        "starting engines and learners (bundled agent: 20 s; large models: minutes)"
    )
    path = Path(options.storage_path, experiment.name)
    # Tune's own tables and tracebacks would interleave with ours.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
    logging.getLogger("ray.tune.execution.experiment_state").addFilter(without_stack)
    # A trial that is stopped gets this long to end by itself, then Ray ends it.
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "6")
    try:
        tuner = _make_tuner(experiment, path, options, signals, changes)
        results = tuner.fit()
    except (OSError, TuneError) as error:
        # Tune passes on what a logger raised as text.
        full = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT)]
        reason = next((text for text in full if text in str(error)), None)
        if reason is None:
            raise
        raise OutOfSpace(
            f"{reason}: results go to {path} by way of {tempfile.gettempdir()}; free "
            f"some, then go on with: {command_to_resume()}"
        ) from error
    finally:
        signals.awaited = False
    if signals.received is not None:
        click.echo(f"stopped; go on with: {command_to_resume()}", err=True)
        raise SystemExit(128 + signals.received)
    if experiment.swept and any(r.metrics.get("training_iteration") for r in results):
        report_sweep(path, experiment.swept)
    errors = [result.error for result in results if result.error is not None]
    if errors:
        which = "trial" if len(results) == 1 else f"{len(errors)} of {len(results)}"
        raise click.ClickException(
            f"{which} failed: {one_line(errors[0])}; {_how_to_go_on(results)}"
        )
    for result in results:
        saved = result.checkpoint and read_metrics(Path(result.checkpoint.path))
        saved = saved["training_iteration"] if saved else 0
        if saved < result.metrics["training_iteration"]:
            raise OutOfSpace(
                f"trained, but the newest checkpoint in {result.path} is of iteration "
                f"{saved}; free some space, then go on with: {command_to_resume()}"
            )
    _say_outcome(experiment, path, results, options.wandb_project)


def _how_to_go_on(results: Iterable[Any]) -> str:
    if any(result.checkpoint for result in results):
        return f"go on from the newest checkpoint with: {command_to_resume()}"
    return "no checkpoint had been saved"


def command_to_resume() -> str:
    """This command with ``--resume``, to be given to a shell."""
    words = ["rllib", *sys.argv[1:]]
    return shlex.join(words if "--resume" in words else [*words, "--resume"])


def without_stack(record: logging.LogRecord) -> bool:
    """Says what Tune could not save (as on a full disk) in a line; a logging filter."""
    if record.exc_info and record.exc_info[1]:
        message = record.getMessage().rstrip(": ")
        record.msg, record.args = f"{message}: {one_line(record.exc_info[1])}", ()
        record.exc_info = None
    return True


def _make_tuner(
    experiment: Experiment,
    path: Path,
    options: RunOptions,
    signals: StopSignals,
    changes: dict[str, Any] | None,
) -> Any:
    import ray
    from ray import tune

    from rllib_llm_async.monitoring.tensorboard_logger import TensorBoardLogger

    checkpoint_config = tune.CheckpointConfig(
        checkpoint_at_end=True,
        checkpoint_frequency=options.checkpoint_freq,
        num_to_keep=options.keep_checkpoints,
    )
    stop = {**experiment.stop, **(changes["stop"] if changes else {})}
    progress = Progress(stop.get("training_iteration"))
    callbacks: list[Any] = [
        progress,
        SaveAndEnd(signals, progress.say),
        TensorBoardLogger(),
    ]
    if options.wandb_project:
        # First: at the end it waits for what it may have to say.
        wandb = _wandb_callback(options.wandb_project, experiment.name, path)
        callbacks.insert(0, wandb)
    if changes is not None:
        check_own(Path(path))
        prepare_resume(
            path,
            experiment,
            Changes(checkpoint_config, experiment.max_failures, **changes),
            click.echo,
        )
        tuner = tune.Tuner.restore(str(path), trainable=experiment.run)
        # What is restored has the callbacks of the first run.
        tuner._local_tuner.get_run_config().callbacks = callbacks
        return tuner
    config = tune_config(experiment)
    if experiment.swept or experiment.num_samples > 1:
        config.max_concurrent_trials = trials_beside_served_models(
            build_config(experiment), ray.cluster_resources()
        )
    return tune.Tuner(
        experiment.run,
        param_space={**param_space(experiment.config), "env": experiment.env},
        tune_config=config,
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=options.storage_path,
            stop=experiment.stop,
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
            checkpoint_config=checkpoint_config,
        ),
    )


def _say_outcome(
    experiment: Experiment,
    path: Path,
    results: Iterable[Any],
    wandb_project: str | None,
) -> None:
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


def _wandb_callback(project: str, group: str, path: Path) -> Any:
    from rllib_llm_async.monitoring.wandb_logger import WandbLogger

    if not (os.environ.get("WANDB_API_KEY") or Path("~/.netrc").expanduser().exists()):
        os.environ.setdefault("WANDB_MODE", "offline")
    # Ray's processes have the environment of before. Where they log from is removed
    # with the cluster, so that the runs are kept beside the results.
    path.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        project=project,
        group=group,
        mode=os.environ.get("WANDB_MODE"),
        dir=os.environ.get("WANDB_DIR", str(path)),
    )
