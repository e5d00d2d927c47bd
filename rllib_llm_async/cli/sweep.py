"""Sweeps: searchers and schedulers of Ray Tune by name in a YAML.

A value of `config` may be a space, see `search_space`; beside `config` an experiment
may have ``num_samples``, ``metric`` and ``mode``, ``scheduler`` (`asha`,
``{type: asha, grace_period: 3}``) and ``search_alg`` (`optuna`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.stop import check_result_name
from rllib_llm_async.settings.check import check_key
from rllib_llm_async.settings.names import unknown

if TYPE_CHECKING:
    from rllib_llm_async.cli.experiment_file import Experiment

#: What a sweep is judged by unless the YAML says otherwise.
DEFAULT_METRIC = "env_runners/success_rate"


def check_sweep(experiment: Experiment) -> None:
    """Checks what can be told without Ray.

    Raises:
        InputError: For a metric that no result has, a mode or a number of samples that
            cannot be, or a searcher beside spaces that are not for one.
    """
    count, mode = experiment.num_samples, experiment.mode
    check_result_name("metric", experiment.metric)
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
    goal = {"metric": experiment.metric, "mode": experiment.mode}
    parts: dict[str, Any] = {}
    for key, spec, known in (
        ("scheduler", experiment.scheduler, schedulers),
        ("search_alg", experiment.search_alg, SEARCH_ALG_IMPORT),
    ):
        if spec is not None:
            parts[key] = _make(key, spec, known, goal)
    check_sweep(experiment)
    # The one given to a searcher or a scheduler must not be given twice.
    return tune.TuneConfig(
        num_samples=experiment.num_samples, **({} if parts else goal), **parts
    )


def _make(key: str, spec: Any, known: Mapping[str, Any], goal: dict[str, str]) -> Any:
    arguments = dict(spec) if isinstance(spec, dict) else {"type": spec}
    name = arguments.pop("type", None)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{key}: {unknown(name, sorted(known))}")
    cls = known[name]
    try:
        cls = cls() if inspect.isfunction(cls) else cls
        parameters = inspect.signature(cls.__init__).parameters
        taken = {k: v for k, v in goal.items() if k in parameters}
        for argument in arguments:
            if argument not in parameters:
                raise InputError(
                    f"{key}: {name} takes no {argument!r}, valid: "
                    f"{', '.join(p for p in parameters if p != 'self')}"
                )
        if "time_attr" in arguments:
            check_result_name(f"{key}: {name}: time_attr", arguments["time_attr"])
        for setting in arguments.get("hyperparam_mutations") or ():
            check_key(setting)
        return cls(**taken, **arguments)
    except InputError:
        raise
    except Exception as error:
        # Ray asserts that a searcher's library is there, with how to install it.
        raise InputError(f"{key}: {name}: {error}") from error


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

    runs = find_runs([path])
    titles = (*swept, "success", "kept by mask", "largest fall", "collapsed")
    table = Table(*(Column(title, overflow="fold") for title in titles))
    for run in runs:
        figures = final_success(run), mask_share(run), largest_fall(run)
        table.add_row(
            *(str(run.config[key]) for key in swept),
            *("-" if figure is None else f"{figure:.3f}" for figure in figures),
            "yes" if collapsed(run) else "",
        )
    Console().print(table)
    page = path / "report.html"
    html = render_page(group_runs(runs))
    page.write_text(html, encoding="utf-8", errors="replace")
    print(f"report: {page}")
