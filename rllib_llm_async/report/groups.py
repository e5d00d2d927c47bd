"""Runs that differ by their seed alone are one group: one colour, one band."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from rllib_llm_async import result_keys
from rllib_llm_async.report.load import Run, is_number
from rllib_llm_async.report.run_settings import (
    SOURCE,
    effective,
    given_settings,
    leaves,
    source_of,
)
from rllib_llm_async.result_keys import evaluation, learner, runners

SUCCESS = runners(result_keys.SUCCESS_RATE)
HELD_OUT = evaluation(result_keys.SUCCESS_RATE)
HELD_OUT_AT_START = "evaluation_at_start/env_runners/success_rate"
#: A fall of success from its peak by more than this counts as a collapse.
COLLAPSE = 0.2
#: So many settings stand in a label at most.
_MAX_KEYS = 4
#: And so many characters of a value.
_MAX_VALUE = 24


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
    return {SOURCE: source_of(run), **settings}


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The few settings in which the groups differ; else experiment, else directory."""
    runs = [members[0] for members in groups]
    keys = [SOURCE, *(key for key in given_settings(runs) if key != SOURCE)]
    values = [{key: effective(run, key) for key in keys} for run in runs]
    differing = [k for k in keys if len({str(v[k]) for v in values}) > 1]
    shown = differing[:_MAX_KEYS]
    experiments = [run.experiment for run in runs]
    if len(differing) > _MAX_KEYS and len(set(experiments)) == len(runs):
        return experiments
    labels = [
        ", ".join(_word(key, v[key]) for key in shown) or run.experiment
        for run, v in zip(runs, values, strict=True)
    ]
    if len(set(labels)) == len(labels):
        return labels
    places: list[Callable[[Run], Any]] = [
        lambda run: run.experiment,
        lambda run: run.directory.parents[1].name,
        lambda run: run.rows[-1].get("trial_id"),
        lambda run: run.directory,
    ]
    for place in places:
        told = [f"{t} ({place(run)})" for t, run in zip(labels, runs, strict=True)]
        if len(set(told)) == len(told):
            break
    return told


def _word(key: str, value: Any) -> str:
    text = "default" if value is None else str(value)
    if len(text) > _MAX_VALUE:
        text = f"{text[: _MAX_VALUE - 1]}…"
    return text if key == SOURCE else f"{key.removeprefix('env_config.')} {text}"
