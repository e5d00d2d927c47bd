"""Runs that differ by their seed alone are one group: one colour, one band."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from rllib_llm_async import result_keys
from rllib_llm_async.report.load import Run, is_number
from rllib_llm_async.result_keys import evaluation, learner, runners
from rllib_llm_async.settings.check import SETTINGS
from rllib_llm_async.settings.schema import ATTRIBUTES

SUCCESS = runners(result_keys.SUCCESS_RATE)
HELD_OUT = evaluation(result_keys.SUCCESS_RATE)
HELD_OUT_AT_START = "evaluation_at_start/env_runners/success_rate"
#: A fall of success from its peak by more than this counts as a collapse.
COLLAPSE = 0.2
#: So many settings stand in a label at most.
_MAX_KEYS = 4
#: Named in a label even where the user left it at its default.
_SOURCE = "old_logprob_source"


@dataclass
class Group:
    """Runs of one configuration; ``label`` says what sets it apart from the others."""

    label: str
    runs: list[Run]
    color: str = ""

    def band(self, key: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Iterations, mean over the runs, half width of its 95 % confidence interval.

        The interval is Student's; it is NaN where fewer than two runs have a value.
        """
        values: dict[int, list[float]] = defaultdict(list)
        for run in self.runs:
            for x, y in zip(*run.series(key), strict=True):
                values[x].append(y)
        iterations = np.array(sorted(values))
        means = np.array([np.mean(values[x]) for x in iterations])
        return iterations, means, np.array([_half_width(values[x]) for x in iterations])

    def mean(self, of_run: Callable[[Run], float | None]) -> float | None:
        """Mean of a figure over the runs that have it."""
        values = [v for v in map(of_run, self.runs) if v is not None]
        return float(np.mean(values)) if values else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups runs by their settings without the seed, in order of appearance."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps(_identity(run), sort_keys=True, default=str)].append(run)
    # The same seed twice: not a repetition but, say, two versions of the code.
    split: list[list[Run]] = []
    for members in groups.values():
        seeds = [run.config.get("seed") for run in members]
        same_seed = len(set(map(str, seeds))) < len(seeds)
        split += [[run] for run in members] if same_seed else [members]
    return [
        Group(label, members)
        for label, members in zip(_labels(split), split, strict=True)
    ]


def final_success(run: Run) -> float | None:
    """Success on held-out tasks at the last evaluation, else in training."""
    held_out = run.last(HELD_OUT)
    return held_out if held_out is not None else run.last(SUCCESS)


def mask_share(run: Run) -> float | None:
    """Mean share of tokens that the Train-Infer mask kept."""
    _, values = run.series(learner(result_keys.TRAIN_INFER_MASK))
    return float(np.mean(values)) if values else None


def largest_fall(run: Run) -> float | None:
    """Largest fall of training success from a peak before it.

    The first means are left out: over the few episodes that end first, the short ones.
    """
    window = run.config.get("metrics_num_episodes_for_smoothing", 0)
    values = [
        row[SUCCESS]
        for row in run.rows
        if is_number(row.get(SUCCESS))
        and row.get("env_runners/num_episodes_lifetime", window) >= window
    ]
    if not values:
        return None
    return float(np.max(np.maximum.accumulate(values) - values))


def collapsed(run: Run) -> float | None:
    """1 if success fell by more than `COLLAPSE` from its peak, else 0."""
    fall = largest_fall(run)
    return None if fall is None else float(fall > COLLAPSE)


def source_of(run: Run) -> str:
    """The source of old log-probabilities that the run trained with."""
    return str(run.config.get(_SOURCE) or run.settings.get(_SOURCE) or "unknown")


def _half_width(values: Sequence[float]) -> float:
    n = len(values)
    if n < 2:
        return float("nan")
    return float(student_t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def _identity(run: Run) -> dict[str, Any]:
    return {**_settings(run), "experiment": run.experiment}


def _settings(run: Run) -> dict[str, Any]:
    settings = dict(leaves(run.settings))
    settings.pop("seed", None)
    return {_SOURCE: source_of(run), **settings}


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping's values by dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The settings in which the groups differ; else experiment, else directory."""
    runs = [members[0] for members in groups]
    given = {key for run in runs for key, _ in leaves(run.settings)}
    keys = [_SOURCE, *sorted(k for k in given if _is_setting(k) and k != _SOURCE)]
    values = [{key: _effective(run, key) for key in keys} for run in runs]
    differing = [k for k in keys if len({str(v[k]) for v in values}) > 1]
    shown = differing[:_MAX_KEYS]
    labels = [
        ", ".join(_word(key, v[key]) for key in shown) or run.experiment
        for run, v in zip(runs, values, strict=True)
    ]
    if len(set(labels)) == len(labels):
        return labels
    experiments = [f"{run.experiment}, {text}" for run, text in zip(runs, labels)]
    if shown and len(set(experiments)) == len(labels):
        return experiments
    return [
        f"{label} ({run.directory.parents[1].name}/{run.directory.name})"
        for label, run in zip(labels, runs, strict=True)
    ]


def _is_setting(key: str) -> bool:
    first = key.split(".")[0]
    return first != "seed" and (first in SETTINGS or first == "env")


def _effective(run: Run, key: str) -> Any:
    """What a run had, given or by default: a run from Python lists all settings."""
    if key == _SOURCE:
        return source_of(run)
    first, *rest = key.split(".")
    attribute = ATTRIBUTES.get(first, first)
    if attribute not in run.config:
        return dict(leaves(run.settings)).get(key)
    value: Any = run.config
    for part in (attribute, *rest):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _word(key: str, value: Any) -> str:
    if key in (_SOURCE, "experiment"):
        return str(value)
    return f"{key.removeprefix('env_config.')} {'default' if value is None else value}"
