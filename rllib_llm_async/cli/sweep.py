"""Sweeps: search spaces, searchers and schedulers of Ray Tune by name in a YAML.

A value of `config` may be a space, ``{grid_search: [1.1, 1.2]}``; beside `config` an
experiment may have ``num_samples``, ``metric`` and ``mode``, ``scheduler`` (`asha`,
``{type: asha, grace_period: 3}``) and ``search_alg`` (`optuna`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.stop import check_result_name
from rllib_llm_async.settings.check import check_value
from rllib_llm_async.settings.names import nearest, unknown

if TYPE_CHECKING:
    from rllib_llm_async.cli.experiment_file import Experiment

#: What a sweep is judged by unless the YAML says otherwise.
DEFAULT_METRIC = "env_runners/success_rate"
#: Names of `ray.tune`'s functions; the first two take a list of values, the others
#: bounds.
_LISTS = ("grid_search", "choice")
_RANGES = ("uniform", "loguniform", "randint")
_BOUNDS = {
    "uniform": "numbers, the smaller one first",
    "loguniform": "numbers above 0, the smaller one first",
    "randint": "whole numbers, the smaller one first (upper is never drawn)",
}


def is_space(value: Any) -> bool:
    """Whether a setting's value stands for several."""
    return (
        isinstance(value, dict)
        and len(value) == 1
        and next(iter(value)) in (*_LISTS, *_RANGES)
    )


def candidates(key: str, value: Any) -> list[Any]:
    """Values to validate: all of a list, both ends of a range, or the value itself.

    Raises:
        InputError: If a space is written wrongly.
    """
    if not is_space(value):
        if isinstance(value, dict) and len(value) == 1:
            (name,) = value
            near = nearest(name, (*_LISTS, *_RANGES))
            if near:
                raise InputError(f"config: {key}: {name!r}, did you mean {near!r}?")
        return [value]
    ((kind, arguments),) = value.items()
    if not isinstance(arguments, list) or not arguments:
        raise InputError(f"config: {key}: {kind} needs a list of values")
    if kind in _LISTS:
        return list(arguments)
    number = int if kind == "randint" else int | float
    if not (
        len(arguments) == 2
        and all(isinstance(n, number) and not isinstance(n, bool) for n in arguments)
        and arguments[0] < arguments[1]
        and (kind != "loguniform" or arguments[0] > 0)
    ):
        raise InputError(
            f"config: {key}: got {kind}: {arguments!r}, {kind} needs [lower, upper], "
            "two " + _BOUNDS[kind]
        )
    lower, upper = arguments
    return [lower, upper - 1 if kind == "randint" else upper]


def check_fractions(key: str, value: Any) -> None:
    """Checks that what a range draws between its ends can be as well.

    Raises:
        InputError: For fractions of a setting that is a whole number.
    """
    if is_space(value) and set(value) <= {"uniform", "loguniform"}:
        ((kind, (lower, upper)),) = value.items()
        between = lower + (upper - lower) / math.pi
        try:
            check_value(key, between)
        except ValueError as error:
            raise InputError(
                f"config: {key}: {kind} draws fractions, write randint for whole "
                f"numbers ({error})"
            ) from error


def param_space(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `ray.tune`'s objects in place of the spaces."""
    from ray import tune

    space = {}
    for key, value in config.items():
        if is_space(value):
            ((kind, arguments),) = value.items()
            args = [arguments] if kind in _LISTS else arguments
            value = getattr(tune, kind)(*args)
        space[key] = value
    return space


def tune_config(experiment: Experiment) -> Any:
    """The `ray.tune.TuneConfig` of an experiment.

    Raises:
        InputError: For an unknown scheduler or searcher, an argument that it does not
            take, or a searcher that is not installed or cannot search such spaces.
    """
    from ray import tune
    from ray.tune.schedulers import SCHEDULER_IMPORT
    from ray.tune.search import SEARCH_ALG_IMPORT

    count, mode = experiment.num_samples, experiment.mode
    check_result_name("metric", experiment.metric)
    if mode not in ("max", "min"):
        raise InputError(f"mode: got {mode!r}, must be max or min")
    if type(count) is not int or count < 1:
        raise InputError(f"num_samples: got {count!r}, must be 1 or more")
    # The name by which everybody knows it is not among Tune's.
    schedulers = {**SCHEDULER_IMPORT, "asha": SCHEDULER_IMPORT["async_hyperband"]}
    goal = {"metric": experiment.metric, "mode": mode}
    parts: dict[str, Any] = {}
    for key, spec, known in (
        ("scheduler", experiment.scheduler, schedulers),
        ("search_alg", experiment.search_alg, SEARCH_ALG_IMPORT),
    ):
        if spec is not None:
            parts[key] = _make(key, spec, known, goal)
    grids = [k for k in experiment.swept if "grid_search" in experiment.config[k]]
    if "search_alg" in parts and not experiment.swept:
        raise InputError(
            f"search_alg: got {experiment.search_alg!r}, but no setting has a space to "
            "search, e.g. lr: {loguniform: [1e-6, 1e-4]}"
        )
    if grids and "search_alg" in parts:
        raise InputError(
            f"search_alg: chooses values itself, write `choice` for grid_search of "
            f"{', '.join(grids)}"
        )
    # The one given to a searcher or a scheduler must not be given twice.
    return tune.TuneConfig(num_samples=count, **({} if parts else goal), **parts)


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
        return cls(**taken, **arguments)
    except (ImportError, AssertionError) as error:
        raise InputError(
            f"{key}: {name} is not installed ({error}); pip install {name}"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{key}: {name}: {error}") from error


def report_sweep(path: Path, swept: Sequence[str]) -> None:
    """A line per trial: the swept settings, where it ended, whether it collapsed; and
    `report.html` beside the trials, with the same as heat maps."""
    from rich.console import Console
    from rich.table import Table

    from rllib_llm_async.report import find_runs, group_runs, render_page
    from rllib_llm_async.report.groups import (
        collapsed,
        final_success,
        largest_fall,
        mask_share,
    )

    runs = find_runs([path])
    table = Table(*swept, "success", "kept by mask", "largest fall", "collapsed")
    for run in runs:
        figures = final_success(run), mask_share(run), largest_fall(run)
        table.add_row(
            *(str(run.config[key]) for key in swept),
            *("-" if figure is None else f"{figure:.3f}" for figure in figures),
            "yes" if collapsed(run) else "",
        )
    Console().print(table)
    page = path / "report.html"
    page.write_text(render_page(group_runs(runs)), encoding="utf-8")
    print(f"report: {page}")
