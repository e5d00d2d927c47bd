"""Weights & Biases: Ray's own integration, and what it cannot know of our results.

Use it with `rllib train file FILE --wandb PROJECT`, or in Python as a callback of
`ray.tune.RunConfig`.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import ray
from ray.air.integrations.wandb import (
    WANDB_ENV_VAR,
    WandbLoggerCallback,
    _WandbLoggingActor,
)
from ray.air.util.node import _force_on_current_node

from rllib_llm_async import result_keys
from rllib_llm_async.core import NUM_RATIO_BINS, RATIO_BIN_EDGES
from rllib_llm_async.monitoring.dialogues import FILE_NAME, render_text
from rllib_llm_async.result_keys import evaluation, learner, runners

#: Key of the sample dialogues on their way from the driver to the logging actor.
_DIALOGUES = "sample_dialogues"
#: What a run is listed by: key and how it is summed up.
SUMMARIES = {
    runners(result_keys.SUCCESS_RATE): "last,max",
    evaluation(result_keys.SUCCESS_RATE): "last,max",
    learner(result_keys.TRAIN_INFER_MASK): "last,min,mean",
    learner(result_keys.PPO_CLIP_FRACTION): "last,max,mean",
    learner(result_keys.STALENESS_MEAN): "mean",
}


class WandbLogger(WandbLoggerCallback):
    """Logs every result key, and as W&B's own types:

    - ``ratios/log_r_d`` and ``ratios/log_r_s``: histograms over an update's tokens;
    - ``marks/ewma_reset`` and ``marks/new_version``: 1 where one happened, else 0;
    - ``dialogues``: a table of the samples of each evaluation.

    The step is ``training_iteration``. A run that is resumed goes on under its id.

    Args:
        project: Name of the W&B project.
        **kwargs: As of `WandbLoggerCallback`.
    """

    def __init__(self, project: str | None = None, **kwargs: Any) -> None:
        # log_config would add some 180 constant columns to every row of the history.
        kwargs = {"log_config": False, "resume": "allow", **kwargs}
        super().__init__(project=project, **kwargs)
        self._logger_actor_cls = _LoggingActor

    def _start_logging_actor(self, trial, exclude_results, **wandb_init_kwargs):
        if not self._remote_logger_class:
            # Ray's own puts the key into the actor's runtime_env, which Ray logs.
            self._remote_logger_class = ray.remote(
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
                **_force_on_current_node(),
            )(self._logger_actor_cls)
        key = os.environ.get(WANDB_ENV_VAR)
        super()._start_logging_actor(
            trial, exclude_results, api_key=key, **wandb_init_kwargs
        )

    def log_trial_result(self, iteration, trial, result):
        if "evaluation" in result:
            result = {**result, _DIALOGUES: _newest_dialogues(trial)}
        super().log_trial_result(iteration, trial, result)

    def on_experiment_end(self, trials, **info):
        # After an interruption no trial has said that it ended, and their runs would be
        # waited for in vain.
        for trial in list(self._trial_queues):
            self._signal_logging_actor_stop(trial)
        super().on_experiment_end(trials, **info)


def _newest_dialogues(trial: Any) -> list[dict[str, Any]]:
    storage = trial.storage
    path = f"{storage.trial_fs_path}/{FILE_NAME}"
    if not storage.storage_filesystem.get_file_info(path).is_file:
        return []
    with storage.storage_filesystem.open_input_stream(path) as stream:
        records = [json.loads(line) for line in stream.read().splitlines()]
    newest = max((r["training_iteration"] for r in records), default=0)
    return [r for r in records if r["training_iteration"] == newest]


class _LoggingActor(_WandbLoggingActor):
    """Runs beside the trial; one per run."""

    _is_defined = False
    _num_resets = 0.0
    _version = 0.0

    def __init__(self, *args: Any, api_key: str | None, **kwargs: Any) -> None:
        if api_key:
            os.environ[WANDB_ENV_VAR] = api_key
        super().__init__(*args, **kwargs)

    def _handle_result(self, result: dict) -> tuple[dict, dict]:
        if not self._is_defined:
            self._define_metrics()
        dialogues = result.pop(_DIALOGUES, [])
        log, config_update = super()._handle_result(result)
        figures = result.get("learners", {}).get("default_policy", {})
        log |= self._histograms(figures)
        log |= self._marks(figures)
        if dialogues:
            log["dialogues"] = self._wandb.Table(
                columns=["task", "success", "reward", "dialogue"],
                data=[
                    [d["task"], d["success"], d["reward"], render_text(d)]
                    for d in dialogues
                ],
            )
        return log, config_update

    def _define_metrics(self) -> None:
        self._wandb.define_metric("*", step_metric="training_iteration")
        for key, summary in SUMMARIES.items():
            self._wandb.define_metric(
                key, step_metric="training_iteration", summary=summary
            )
        self._is_defined = True

    def _histograms(self, figures: dict) -> dict[str, Any]:
        density = figures.get(result_keys.RATIO_DENSITY)
        if density is None:
            return {}
        counts = np.asarray(density).reshape(NUM_RATIO_BINS, NUM_RATIO_BINS)
        # The outer bins are open: they get the width of their neighbours.
        edges = np.asarray(RATIO_BIN_EDGES)
        edges = np.concatenate([[2 * edges[0]], edges, [2 * edges[-1]]])
        return {
            "ratios/log_r_d": self._wandb.Histogram(
                np_histogram=(counts.sum(axis=1), edges)
            ),
            "ratios/log_r_s": self._wandb.Histogram(
                np_histogram=(counts.sum(axis=0), edges)
            ),
        }

    def _marks(self, figures: dict) -> dict[str, int]:
        resets = figures.get(result_keys.EWMA_NUM_RESETS, self._num_resets)
        version = figures.get(result_keys.POLICY_VERSION, self._version)
        marks = {
            "marks/ewma_reset": int(resets > self._num_resets),
            "marks/new_version": int(version > self._version),
        }
        self._num_resets, self._version = resets, version
        return marks
