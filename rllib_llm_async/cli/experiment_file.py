"""Tuned YAML files: read safely, checked key by key before anything starts.

experiment-name: {run: ..., env: ..., stop: {...}, config: {...}}

Beside these, `max_failures` and what makes a sweep (`sweep`) are optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice, product
from pathlib import Path
from typing import Any

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.search_space import candidates, check_fractions, is_space
from rllib_llm_async.cli.sweep import DEFAULT_METRIC, check_sweep
from rllib_llm_async.cli.yaml_text import read_yaml
from rllib_llm_async.models.resolve import absolute_model
from rllib_llm_async.settings.check import (
    SETTINGS,
    check_key,
    check_value,
    name_of,
    settings_of,
)
from rllib_llm_async.settings.combinations import check_combinations
from rllib_llm_async.settings.names import (
    ABSENT,
    ALGORITHMS,
    GROUPS,
    did_you_mean,
    explain,
    unknown,
)

#: Of a sweep's settings, so many combinations are checked.
_MAX_COMBINATIONS = 2000
_SWEEP_KEYS = ("num_samples", "metric", "mode", "scheduler", "search_alg")
_OPTIONAL_KEYS = ("max_failures", *_SWEEP_KEYS)
_EXPERIMENT_KEYS = ("run", "env", "stop", "config", *_OPTIONAL_KEYS)


@dataclass
class Experiment:
    """One experiment of a tuned YAML."""

    name: str
    run: str
    env: str
    stop: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    #: How often a trial is restarted from its newest checkpoint; -1: without end.
    max_failures: int = 3
    num_samples: int = 1
    metric: str = DEFAULT_METRIC
    mode: str = "max"
    scheduler: Any = None
    search_alg: Any = None

    @property
    def swept(self) -> list[str]:
        """Settings of which a search space is given."""
        return [key for key, value in self.config.items() if is_space(value)]


def load_experiments(path: Path) -> list[Experiment]:
    """Reads a tuned YAML.

    Raises:
        InputError: If the file is missing, is not YAML or has another shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; `rllib example list` names the bundled files"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    return read_experiments(path, text)


def read_experiments(path: Path, text: str) -> list[Experiment]:
    """The experiments in the text of a tuned YAML.

    Raises:
        InputError: As `load_experiments`; begins with ``path``.
    """
    try:
        document = read_yaml(text)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(document, dict) or not document:
        raise InputError(
            f"{path}: expected `experiment-name: {{run, env, stop, config}}`"
        )
    return [_experiment(path, name, spec) for name, spec in document.items()]


def choose_experiment(experiments: Iterable[Experiment], name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        InputError: If there is none.
    """
    by_name = {experiment.name: experiment for experiment in experiments}
    if name not in by_name:
        raise InputError(
            f"--experiment {name}: unknown{did_you_mean(name, by_name)}; "
            f"the file has {', '.join(by_name)}"
        )
    return by_name[name]


def _experiment(path: Path, name: Any, spec: Any) -> Experiment:
    if not isinstance(name, str):
        raise InputError(
            f"{path}: {name!r}: an experiment's name must be text; put it in quotes"
        )
    if not isinstance(spec, dict):
        raise InputError(f"{path}: {name}: expected keys run, env, stop and config")
    for key in spec:
        if key not in _EXPERIMENT_KEYS:
            raise InputError(f"{path}: {name}: {_why_no_key(key)}")
    for key in ("run", "env"):
        if not isinstance(spec.get(key), str):
            raise InputError(f"{path}: {name}: {key} is missing or not a name")
    for key in ("stop", "config"):
        if not isinstance(spec.get(key, {}), dict):
            raise InputError(f"{path}: {name}: {key} must be a mapping")
    failures = spec.get("max_failures", 0)
    if type(failures) is not int or failures < -1:
        raise InputError(
            f"{path}: {name}: max_failures: got {failures!r}, must be a whole number "
            "of restarts, or -1 for no limit"
        )
    return Experiment(
        name=name,
        run=spec["run"],
        env=spec["env"],
        # Copies: anchors of the YAML would share what --set changes.
        stop=dict(spec.get("stop", {})),
        config=deepcopy(spec.get("config", {})),
        **{key: spec[key] for key in _OPTIONAL_KEYS if key in spec},
    )


def _why_no_key(key: Any) -> str:
    if key in SETTINGS:
        return f"{key}: a setting, it stands under config"
    if key in ABSENT:
        return explain(key, _EXPERIMENT_KEYS)
    return f"key {unknown(key, _EXPERIMENT_KEYS)}"


def parse_assignments(option: str, assignments: Iterable[str]) -> dict[str, Any]:
    """``key=value`` options to a dict; values are YAML scalars, lists or mappings."""
    parsed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"{option} {assignment}: expected key=value")
        if key in parsed:
            raise InputError(f"{option} {key}: given twice; keep one")
        try:
            parsed[key] = read_yaml(value)
        except ValueError as error:
            raise InputError(f"{option} {assignment}: {error}") from error
    return parsed


def apply_settings(config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Applies ``--set``: ``key``, ``group.key`` or ``key.subkey`` of a mapping."""
    seen: set[tuple[str, str]] = set()
    for dotted, value in settings.items():
        first, _, rest = dotted.partition(".")
        if first in GROUPS:
            if not rest:
                raise InputError(
                    f"--set {dotted}: a group of settings, name one of them as in "
                    f"{first}.KEY=VALUE"
                )
            first, _, rest = rest.partition(".")
        name = name_of(first)
        if (name, rest) in seen:
            raise InputError(f"--set {dotted}: given twice; keep one")
        if not rest and any(other == name for other, _ in seen):
            raise InputError(f"--set {dotted}: would undo a --set of one of its keys")
        seen.add((name, rest))
        if rest:
            if config.get(first) is None:
                config[first] = {}
            if not isinstance(config[first], dict):
                raise InputError(f"--set {dotted}: {first} is not a mapping")
            config[first][rest] = value
        else:
            config[first] = value


def with_absolute_models(config: Any) -> Any:
    """The same with directories of models by their whole paths.

    Trials of Tune run in folders of their own.
    """
    if isinstance(config, list):
        return [with_absolute_models(value) for value in config]
    if not isinstance(config, dict):
        return config
    return {
        key: _map_text(absolute_model, value)
        if key in ("model", "served_model")
        else with_absolute_models(value)
        for key, value in config.items()
    }


def _map_text(function: Callable[[str], str], value: Any) -> Any:
    """Each text in a value, or in a search space of values."""
    if isinstance(value, str):
        return function(value)
    if is_space(value):
        ((kind, values),) = value.items()
        return {kind: [_map_text(function, v) for v in values]}
    return value


def open_config(path: Path, only: str | None, settings: Iterable[str]) -> Any:
    """The validated config of one experiment of a file.

    Args:
        path: A tuned YAML.
        only: Name of the experiment; None takes the only one.
        settings: Of ``--set``.

    Raises:
        InputError: As `load_experiments` and `build_config`; if a name is needed.
    """
    experiments = load_experiments(path)
    if only is None and len(experiments) > 1:
        names = ", ".join(experiment.name for experiment in experiments)
        raise InputError(f"{path}: --experiment is needed, one of {names}")
    experiment = choose_experiment(experiments, only) if only else experiments[0]
    apply_settings(experiment.config, parse_assignments("--set", settings))
    check_experiment(experiment)
    return build_config(experiment)


def build_config(experiment: Experiment) -> Any:
    """The validated `AlgorithmConfig` of an experiment.

    Search spaces (``{grid_search: [...]}``) are validated value by value, ranges at
    their ends.

    Raises:
        InputError: Names the key and, where there is one, the nearest valid key.
    """
    from rllib_llm_async import register
    from rllib_llm_async.algorithms import get_config_class

    register()
    try:
        config = get_config_class(experiment.run)().environment(experiment.env)
    except ValueError as error:
        raise InputError(error) from error
    for key, value in experiment.config.items():
        check_setting(key, value)
        for candidate in candidates(key, value):
            try:
                config.copy().update_from_dict({key: candidate})
            except (TypeError, ValueError) as error:
                raise InputError(f"config: {key}: {error}") from error
    values = {key: candidates(key, v) for key, v in experiment.config.items()}
    first = {key: of_key[0] for key, of_key in values.items()}
    trials = [first]
    for key, of_key in values.items():
        trials += [{**first, key: candidate} for candidate in of_key[1:]]
    for trial in reversed(trials):
        candidate_config = config.copy().update_from_dict(trial)
        try:
            candidate_config.validate()
        except (TypeError, ValueError) as error:
            raise InputError(f"config: {error}") from error
    _check_together(candidate_config, {k: v for k, v in values.items() if len(v) > 1})
    return candidate_config


def _check_together(config: Any, swept: Mapping[str, Sequence[Any]]) -> None:
    """What each value can be beside the first of the others it may not be beside all.

    Raises:
        InputError: For the first combination that cannot be, of the first
            `_MAX_COMBINATIONS`.
    """
    settings = settings_of(config)
    combinations = islice(product(*swept.values()), _MAX_COMBINATIONS)
    for trial in combinations if len(swept) > 1 else ():
        chosen = dict(zip(map(name_of, swept), trial))
        try:
            check_combinations(settings | chosen)
        except ValueError as error:
            where = ", ".join(f"{key}: {value!r}" for key, value in chosen.items())
            raise InputError(f"config: {error} (a trial would have {where})") from error


def check_experiment(experiment: Experiment) -> None:
    """Checks each name and value by itself, without Ray.

    Raises:
        InputError: As `build_config`, for what can be told without it.
    """
    if experiment.run not in ALGORITHMS:
        raise InputError(f"run: {unknown(experiment.run, ALGORITHMS)}")
    names: dict[str, Any] = {}
    for key, value in experiment.config.items():
        check_setting(key, value)
        if names.setdefault(name_of(key), key) != key:
            raise InputError(
                f"config: {key}: another name of {names[name_of(key)]}; keep one"
            )
    check_sweep(experiment)


def check_setting(key: Any, value: Any) -> None:
    """Checks a key, and of its values each that a trial may have.

    Raises:
        InputError: Names the key and, where there is one, the nearest valid key.
    """
    try:
        check_key(key)
        for candidate in candidates(key, value):
            check_value(key, candidate)
        check_fractions(key, value)
    except ValueError as error:
        raise InputError(f"config: {error}") from error
