"""Preparing what Tune kept of an interrupted run for `rllib train ... --resume`.

Tune goes on from the last state that it wrote, which may be older than the newest
checkpoint and names checkpoints without looking at them. So the state is brought up
to date first: by trial the newest checkpoint that is whole, what `--stop` and `--set`
change, and whether it goes on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    MANIFEST,
    check_whole,
    read_metrics,
)
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import (
    Experiment,
    apply_settings,
    build_config,
    with_absolute_models,
)
from rllib_llm_async.cli.search_space import is_space

if TYPE_CHECKING:
    from ray.tune import CheckpointConfig
    from ray.tune.experiment import Trial

#: Settings that a checkpoint's weights and optimizer were made with.
_FIXED = ("model", "lora", "compute_dtype", "optimizer")


@dataclass
class Changes:
    """What a command says beside ``--resume``."""

    checkpoint_config: CheckpointConfig
    max_failures: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: Mapping[str, float] = field(default_factory=dict)


def prepare_resume(
    path: Path, experiment: Experiment, changes: Changes, say: Callable[[str], None]
) -> None:
    """Brings the state of an experiment up to date.

    Args:
        path: The experiment's folder.
        experiment: As the command has it.
        changes: Applied to the trials that go on.
        say: Prints a line.

    Raises:
        InputError: If a setting cannot be changed, a trial has checkpoints of which
            none is whole, or Tune's state cannot be read.
    """
    from ray.tune.experiment import Trial

    file = max(path.glob("experiment_state-*.json"))
    try:
        state = json.loads(file.read_bytes())
        trials = [Trial.from_json_state(text) for text, _ in state["trial_data"]]
        for trial, (_, metadata) in zip(trials, state["trial_data"], strict=True):
            trial.restore_run_metadata(metadata)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"--resume: {file} cannot be read ({error}); without --resume, the run "
            "starts anew"
        ) from error
    chooser = experiment.search_alg
    if chooser is None and len(trials) < _num_planned(experiment):
        chooser = "Tune"  # which waits for room, see `trials_beside_served_models`
    settings = _without_spaces(changes.settings, trials, in_part=bool(chooser))
    changes = replace(changes, settings=settings)
    for trial in trials:
        label = f"{trial.experiment_tag}: " if len(trials) > 1 else ""
        _prepare_trial(
            path,
            experiment,
            trial,
            changes,
            lambda text, label=label: say(label + text),
            chooser,
        )
    state["trial_data"] = [trial.get_json_state() for trial in trials]
    new = file.with_suffix(".new")
    new.write_text(json.dumps(state))
    os.replace(new, file)


def _prepare_trial(
    path: Path,
    experiment: Experiment,
    trial: Trial,
    changes: Changes,
    say: Callable[[str], None],
    chooser: str | None,
) -> None:
    """Says with which state it goes on; ``chooser`` has still to make others."""
    from ray.tune.experiment import Trial

    last = trial.run_metadata.last_result
    ended = trial.status == Trial.TERMINATED
    # Neither its criteria nor its end: a scheduler or a searcher stopped it.
    if ended and not _reached(trial.stopping_criterion, last):
        return
    metrics = _find_checkpoints(path, trial, changes.checkpoint_config, say)
    stop = {**trial.stopping_criterion, **changes.stop}
    if chooser and stop != trial.stopping_criterion:
        raise InputError(
            f"--resume: --stop: the trials that {chooser} has still to choose would "
            "not have it"
        )
    trial.stopping_criterion = stop
    iteration = metrics.get("training_iteration") or 0
    if _reached(trial.stopping_criterion, last if ended else metrics) and (
        iteration >= (last.get("training_iteration") or 0)
    ):
        trial.set_status(Trial.TERMINATED)
        last["done"] = True
        say(f"has ended at iteration {iteration}; a larger --stop goes on")
    else:
        trial.set_status(Trial.PENDING)
        last.pop("done", None)
        say(
            f"resuming at iteration {iteration} from {trial.checkpoint.path}"
            if trial.checkpoint
            else "starting at iteration 0, there is no checkpoint yet"
        )
        _change_settings(experiment, trial, changes.settings, say, chooser)
    trial.max_failures = changes.max_failures
    trial.run_metadata.num_failures = 0
    trial.run_metadata.error_filename = None
    trial.run_metadata.pickled_error_filename = None
    trial.run_metadata.invalidate_cache()
    trial.invalidate_json_state()


def _reached(stop: Mapping[str, float], result: Mapping[str, Any]) -> bool:
    from ray.tune.utils import flatten_dict

    flat = flatten_dict(dict(result))
    return any(key in flat and flat[key] >= value for key, value in stop.items())


def _find_checkpoints(
    path: Path,
    trial: Trial,
    checkpoint_config: CheckpointConfig,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tells a trial its checkpoints; returns the metrics of the newest whole one."""
    from ray.train._internal.checkpoint_manager import _CheckpointManager
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint

    folder = path / (trial.storage.trial_dir_name or "")
    on_disk = sorted(folder.glob("checkpoint_??????"))
    whole: list[tuple[Path, dict[str, Any]]] = []
    cut_off = []
    for checkpoint in reversed(on_disk):
        try:
            if not whole:  # the older ones are there in case it gets damaged
                check_whole(checkpoint)
            whole.append((checkpoint, read_metrics(checkpoint)))
        except ValueError as error:
            say(f"not resuming from {checkpoint}: {error}")
            cut_off += [] if (checkpoint / MANIFEST).exists() else [checkpoint]
    if on_disk and not whole:
        raise InputError(
            f"--resume: no checkpoint in {folder} is whole; without --resume, the run "
            "starts anew"
        )
    for checkpoint in cut_off:  # of which nobody else would make room
        say(f"removing {checkpoint}")
        shutil.rmtree(checkpoint, ignore_errors=True)
    manager = _CheckpointManager(checkpoint_config)
    for checkpoint, metrics in reversed(whole):
        manager.register_checkpoint(
            _TrainingResult(Checkpoint.from_directory(checkpoint), metrics)
        )
    trial.run_metadata.checkpoint_manager = manager
    if on_disk:  # the next one is written beside them, not over one
        trial.storage.current_checkpoint_index = int(on_disk[-1].name[-6:])
    return dict(whole[0][1]) if whole else {}


def _num_planned(experiment: Experiment) -> int:
    """Trials of an experiment without a searcher."""
    spaces = [experiment.config[key] for key in experiment.swept]
    return experiment.num_samples * math.prod(
        len(space["grid_search"]) for space in spaces if "grid_search" in space
    )


def _without_spaces(
    settings: Mapping[str, Any], trials: Sequence[Trial], *, in_part: bool
) -> dict[str, Any]:
    """What is to be changed: not the spaces of the first command, which are in use.

    Args:
        settings: Of the command.
        trials: Of the run.
        in_part: Whether others are still to come.

    Raises:
        InputError: For a space that the trials' values were not drawn from.
    """
    plain = {}
    for option, value in settings.items():
        if not is_space(value):
            plain[option] = value
            continue
        given: dict[str, Any] = {}
        apply_settings(given, {option: value})
        (key,) = given
        drawn = [trial.evaluated_params.get(key) for trial in trials]
        if not _can_draw(value, drawn, in_part):
            raise InputError(
                f"--resume: --set {option}: {value} is not what the trials of this run "
                "were drawn from; start a run of another name for it"
            )
    return plain


def _can_draw(space: Mapping[str, Any], drawn: Sequence[Any], in_part: bool) -> bool:
    """Whether these can be what a sweep took from a space, all of it or only in part;
    None is no value."""
    ((kind, arguments),) = space.items()
    if kind == "choice":
        return all(value in arguments for value in drawn)
    if kind == "grid_search":
        return all(value in arguments for value in drawn) and (
            in_part or all(value in drawn for value in arguments)
        )
    lower, upper = arguments
    return all(value is not None and lower <= value <= upper for value in drawn)


def _say_what_is_not_used(
    experiment: Experiment,
    trial: Trial,
    config: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """A file may have been edited since: what began goes on as it is."""
    for option, file, run in (
        ("--set", experiment.config, config),
        ("--stop", experiment.stop, trial.stopping_criterion),
    ):
        for key, value in file.items():
            there = run.get(key, "the default")
            if value != there and not is_space(value):
                say(
                    f"{key}: {value} in the file does not count, the run has {there}; "
                    f"{option} {key}=... would change it"
                )


def _change_settings(
    experiment: Experiment,
    trial: Trial,
    settings: Mapping[str, Any],
    say: Callable[[str], None],
    chooser: str | None,
) -> None:
    before = trial.config
    config = deepcopy(before)
    apply_settings(config, settings)
    given = {key: v for key, v in config.items() if v != before.get(key)}
    config |= with_absolute_models(given)
    changed = [key for key in given if config[key] != before.get(key)]
    for key in changed:
        old = before.get(key, "the default")
        value_head = key == "advantage_estimator" and "gae" in (old, config[key])
        shares = key == "learner_sharding" and config[key] == "fsdp2"
        if key in _FIXED or value_head or shares:
            raise InputError(
                f"--resume: --set {key}: the checkpoint was made with {old}; "
                "start a run of another name for another value"
            )
        if key in trial.evaluated_params:
            raise InputError(
                f"--resume: --set {key}: the trials of this sweep differ in it"
            )
        if chooser:
            raise InputError(
                f"--resume: --set {key}: the trials that {chooser} has still to choose "
                "would not have it"
            )
    env, plain = config["env"], {k: v for k, v in config.items() if k != "env"}
    build_config(Experiment(experiment.name, experiment.run, env, config=plain))
    for key in changed:
        say(f"{key}: {before.get(key, 'the default')} -> {config[key]}")
    _say_what_is_not_used(experiment, trial, config, say)
    trial.set_config(config)
    # What Tune fills values in that it could not write into its state.
    trial.__dict__["_Trial__unresolved_config"] = config
