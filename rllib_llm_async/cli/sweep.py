"""Sweeps: searchers and schedulers of Ray Tune by name in a YAML.

A value of `config` may be a space, see `search_space`; beside `config` an experiment
may have ``num_samples``, ``metric`` and ``mode``, ``scheduler`` (`asha`,
``{type: asha, grace_period: 3}``) and ``search_alg`` (`optuna`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.search_space import candidates
from rllib_llm_async.cli.stop import check_result_name
from rllib_llm_async.settings.check import check_key
from rllib_llm_async.settings.names import unknown

if TYPE_CHECKING:
    from rllib_llm_async.cli.experiment_file import Experiment

#: What a sweep is judged by unless the YAML says otherwise.
DEFAULT_METRIC = "env_runners/success_rate"
#: Schedulers that pass over a result without the metric; the others, and searchers,
#: end the sweep at it.
_PATIENT = ("asha", "async_hyperband", "asynchyperband")


def check_sweep(experiment: Experiment) -> None:
    """Checks what can be told without Ray.

    Raises:
        InputError: For a metric that no result has, a mode or a number of samples that
            cannot be, or a searcher beside spaces that are not for one.
    """
    count, mode = experiment.num_samples, experiment.mode
    check_result_name("metric", experiment.metric)
    if None in _evaluation_intervals(experiment):
        raise InputError(
            f"metric: {experiment.metric}: there is none with evaluation_interval: null"
        )
    if mode not in ("max", "min"):
        raise InputError(f"mode: got {mode!r}, must be max or min")
    if type(count) is not int or count < 1:
        raise InputError(f"num_samples: got {count!r}, must be 1 or more")
    grids = [k for k in experiment.swept if "grid_search" in experiment.config[k]]
    if experiment.search_alg is None:
        return
    if not experiment.swept:
        raise InputError(
            f"search_alg: got {experiment.search_alg!r}, but no setting has a space to "
            "search, e.g. lr: {loguniform: [1e-6, 1e-4]}"
        )
    if grids:
        raise InputError(
            f"search_alg: chooses values itself, write `choice` for grid_search of "
            f"{', '.join(grids)}"
        )


def tune_config(experiment: Experiment) -> Any:
    """The `ray.tune.TuneConfig` of an experiment.

    Raises:
        InputError: As `check_sweep`; for an unknown scheduler or searcher, an argument
            that it does not take, or one that is not installed.
    """
    from ray import tune
    from ray.tune.schedulers import SCHEDULER_IMPORT
    from ray.tune.search import SEARCH_ALG_IMPORT

    # The name by which everybody knows it is not among Tune's.
    schedulers = {**SCHEDULER_IMPORT, "asha": SCHEDULER_IMPORT["async_hyperband"]}
    # Else Tune ends the sweep at the first result without the metric, such as one of an
    # iteration that was not followed by an evaluation.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    parts: dict[str, Any] = {}
    for key, spec, known in (
        ("scheduler", experiment.scheduler, schedulers),
        ("search_alg", experiment.search_alg, SEARCH_ALG_IMPORT),
    ):
        if spec is not None:
            parts[key] = _make(experiment, key, spec, known)
    check_sweep(experiment)
    goal = {"metric": experiment.metric, "mode": experiment.mode}
    # The one given to a searcher or a scheduler must not be given twice.
    return tune.TuneConfig(
        num_samples=experiment.num_samples, **({} if parts else goal), **parts
    )


def _evaluation_intervals(experiment: Experiment) -> list[Any]:
    """Those of the trials if they are judged by an evaluation, else none."""
    if not experiment.metric.startswith("evaluation/"):
        return []
    key = "evaluation_interval"
    return candidates(key, experiment.config.get(key))


def _make(experiment: Experiment, key: str, spec: Any, known: Mapping[str, Any]) -> Any:
    arguments = dict(spec) if isinstance(spec, dict) else {"type": spec}
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{key}: {unknown(name, sorted(known))}")
    cls = known[name]
    try:
        cls = cls() if inspect.isfunction(cls) else cls
        parameters = inspect.signature(cls.__init__).parameters
        _check_arguments(f"{key}: {name}", arguments, parameters)
        goal = {"metric": experiment.metric, "mode": experiment.mode}
        taken = {k: v for k, v in goal.items() if k in parameters}
        rare = any(n != 1 for n in _evaluation_intervals(experiment))
        if rare and taken and name not in _PATIENT:
            raise InputError(
                f"{key}: {name} needs the metric in every result, and "
                f"{experiment.metric} is in some; write evaluation_interval: 1, "
                f"metric: {DEFAULT_METRIC}, or scheduler: asha alone"
            )
        if "max_t" in parameters and "max_t" not in arguments:
            arguments = _until_stop(arguments, parameters, experiment.stop) | arguments
        return cls(**taken, **arguments)
    except InputError:
        raise
    except Exception as error:
        # Ray asserts that a searcher's library is there, with how to install it.
        raise InputError(f"{key}: {name}: {error}") from error


def _check_arguments(
    label: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any]
) -> None:
    for argument in arguments:
        if argument not in parameters:
            raise InputError(
                f"{label} takes no {argument!r}, valid: "
                f"{', '.join(p for p in parameters if p != 'self')}"
            )
    if "time_attr" in arguments:
        check_result_name(f"{label}: time_attr", arguments["time_attr"])
    for setting in arguments.get("hyperparam_mutations") or ():
        check_key(setting)


def _until_stop(
    arguments: Mapping[str, Any], parameters: Mapping[str, Any], stop: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments by which a scheduler leaves the end of the best trials to `stop`.

    By Tune's default it ends them after 100 iterations, in silence, and a larger
    ``--stop`` of ``--resume`` would not help.
    """
    until = {"stop_last_trials": False}
    end = stop.get(arguments.get("time_attr", parameters["time_attr"].default))
    if end is not None:
        # A look at a sweep may end before the grace period does.
        until["max_t"] = max(end, arguments.get("grace_period", end))
    return until


def report_sweep(path: Path, swept: Sequence[str]) -> None:
    """A line per trial: the swept settings, where it ended, whether it collapsed; and
    `report.html` beside the trials, with the same as heat maps."""
    from rich.console import Console
    from rich.table import Column, Table

    from rllib_llm_async.report import find_runs, group_runs, render_page
    from rllib_llm_async.report.groups import (
        collapsed,
        final_success,
        largest_fall,
        mask_share,
    )
    from rllib_llm_async.report.run_settings import effective

    runs = find_runs([path])
    titles = (*swept, "success", "kept by mask", "largest fall", "collapsed")
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for run in runs:
        figures = final_success(run), mask_share(run), largest_fall(run)
        table.add_row(
            *(str(effective(run, key)) for key in swept),
            *("-" if figure is None else f"{figure:.3f}" for figure in figures),
            "yes" if collapsed(run) else "",
        )
    Console().print(table)
    page = path / "report.html"
    html = render_page(group_runs(runs))
    page.write_text(html, encoding="utf-8", errors="replace")
    print(f"report: {page}")
