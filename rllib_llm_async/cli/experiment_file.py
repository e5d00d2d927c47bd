"""Tuned YAML files: read safely, checked key by key before anything starts.

experiment-name: {run: ..., env: ..., stop: {...}, config: {...}}
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.sweep import DEFAULT_METRIC, candidates, is_space

_SWEEP_KEYS = ("num_samples", "metric", "mode", "scheduler", "search_alg")
_EXPERIMENT_KEYS = ("run", "env", "stop", "config", *_SWEEP_KEYS)
#: `AlgorithmConfig` methods by which --set may group a key, as in training.eps_ti.
_GROUPS = (
    "training",
    "environment",
    "env_runners",
    "learners",
    "evaluation",
    "resources",
    "debugging",
    "fault_tolerance",
)


@dataclass
class Experiment:
    """One experiment of a tuned YAML."""

    name: str
    run: str
    env: str
    stop: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
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
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; `rllib example list` names the bundled files"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
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
            f"--experiment {name}: unknown{nearest(name, by_name)}; "
            f"the file has {', '.join(by_name)}"
        )
    return by_name[name]


def _experiment(path: Path, name: Any, spec: Any) -> Experiment:
    if not isinstance(spec, dict):
        raise InputError(f"{path}: {name}: expected keys run, env, stop and config")
    for key in spec:
        if key not in _EXPERIMENT_KEYS:
            raise InputError(
                f"{path}: {name}: unknown key {key!r}{nearest(key, _EXPERIMENT_KEYS)}"
            )
    for key in ("run", "env"):
        if not isinstance(spec.get(key), str):
            raise InputError(f"{path}: {name}: {key} is missing or not a name")
    for key in ("stop", "config"):
        if not isinstance(spec.get(key, {}), dict):
            raise InputError(f"{path}: {name}: {key} must be a mapping")
    return Experiment(
        name=str(name),
        run=spec["run"],
        env=spec["env"],
        stop={k: to_number(v) for k, v in spec.get("stop", {}).items()},
        config={k: to_number(v) for k, v in spec.get("config", {}).items()},
        **{key: to_number(spec[key]) for key in _SWEEP_KEYS if key in spec},
    )


def parse_assignments(option: str, assignments: Iterable[str]) -> dict[str, Any]:
    """``key=value`` options to a dict; values are YAML scalars, lists or mappings."""
    parsed = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"{option} {assignment}: expected key=value")
        try:
            parsed[key] = to_number(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(f"{option} {assignment}: {error}") from error
    return parsed


def apply_settings(config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Applies ``--set``: ``key``, ``group.key`` or ``key.subkey`` of a mapping."""
    for dotted, value in settings.items():
        first, _, rest = dotted.partition(".")
        if rest and first in _GROUPS:
            first, _, rest = rest.partition(".")
        if rest:
            config.setdefault(first, {})
            if not isinstance(config[first], dict):
                raise InputError(f"--set {dotted}: {first} is not a mapping")
            config[first][rest] = value
        else:
            config[first] = value


def build_config(experiment: Experiment) -> Any:
    """The validated `AlgorithmConfig` of an experiment.

    Search spaces (``{grid_search: [...]}``) are validated value by value, ranges at
    their ends.

    Raises:
        InputError: Names the key and, where there is one, the nearest valid key.
    """
    from rllib_llm_async.algorithms import get_config_class

    try:
        config = get_config_class(experiment.run)().environment(experiment.env)
    except ValueError as error:
        raise InputError(error) from error
    valid = {*config.to_dict(), "model"}
    for key, value in experiment.config.items():
        if key not in valid:
            raise InputError(f"config: unknown key {key!r}{nearest(key, valid)}")
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
    return candidate_config


def nearest(key: str, valid: Iterable[str]) -> str:
    """``, did you mean 'x'?`` or nothing."""
    near = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def to_number(value: Any) -> Any:
    """PyYAML reads 1e-4 as a string: make it the number that was meant."""
    if isinstance(value, dict):
        return {k: to_number(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_number(v) for v in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and value:
        try:
            return float(value)
        except ValueError:
            return value
    return value
