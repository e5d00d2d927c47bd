"""Weights & Biases: Ray's own integration, and what it cannot know of our results.

Use it with `rllib train file FILE --wandb PROJECT`, or in Python as a callback of
`ray.tune.RunConfig`.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.air.integrations.wandb import (
    WANDB_ENV_VAR,
    WandbLoggerCallback,
    _WandbLoggingActor,
)
from ray.air.util.node import _force_on_current_node

from rllib_llm_async.monitoring.dialogues import newest_dialogues, render_text
from rllib_llm_async.monitoring.panels import HEADLINES, Marks, ratio_histograms
from rllib_llm_async.monitoring.status_board import find_status_board

_logger = logging.getLogger(__name__)
#: Variables of the command that its actors need; a cluster has those of its own start.
_ENVIRONMENT = (WANDB_ENV_VAR, "WANDB_BASE_URL", "WANDB_ENTITY")
#: Key of the sample dialogues on their way from the driver to the logging actor.
_DIALOGUES = "sample_dialogues"


class WandbLogger(WandbLoggerCallback):
    """Logs every result key, and as W&B's own types:

    - ``ratios/log_r_d`` and ``ratios/log_r_s``: histograms over an update's tokens;
    - ``marks/ewma_reset`` and ``marks/new_version``: 1 where one happened, else 0;
    - ``dialogues``: a table of the samples of each evaluation.

    The step is ``training_iteration``. A run that is resumed goes on under its id. The
    trials of a sweep are named after what the sweep has chosen for them. Where W&B does
    not answer, or refuses, a run is kept offline, and `rllib train` says so.

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
        environment = {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
        # "3_eps_ti=1.2,seed=1": the number says nothing.
        _, _, chosen = trial.experiment_tag.partition("_")
        name = self.kwargs.get("name") or chosen or trial.experiment_dir_name
        super()._start_logging_actor(
            trial,
            exclude_results,
            environment=environment,
            **{**wandb_init_kwargs, "name": name},
        )

    def log_trial_result(self, iteration, trial, result):
        if "evaluation" in result:
            result = {**result, _DIALOGUES: newest_dialogues(trial)}
        super().log_trial_result(iteration, trial, result)

    def on_experiment_end(self, trials, **info):
        # After an interruption no trial has said that it ended, and their runs would be
        # waited for in vain.
        for trial in list(self._trial_queues):
            self._signal_logging_actor_stop(trial)
        super().on_experiment_end(trials, **info)


class _LoggingActor(_WandbLoggingActor):
    """Runs beside the trial; one per run."""

    _is_defined = False

    def __init__(self, *args: Any, environment: dict[str, str], **kwargs: Any) -> None:
        os.environ.update(environment)
        super().__init__(*args, **kwargs)
        self._marks = Marks()

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # no network, an expired key, another's project
            # Nobody asks for what comes of this call, so that nobody would be told.
            self._say_that_it_is_offline(error)
            self._wandb.teardown()  # else the run's id is in use
            self.kwargs["mode"] = "offline"
            self._is_defined = False
            super().run()

    def _say_that_it_is_offline(self, error: Exception) -> None:
        reason = str(error).partition("\n")[0] or repr(error)
        folder = os.path.join(self.kwargs.get("dir", self._logdir), "wandb")
        text = (
            f"W&B: {reason}; the run is kept offline, send it later with: "
            f"wandb sync {folder}/offline-run-*"
        )
        _logger.warning(text)
        board = find_status_board()
        if board is not None:
            board.notify.remote(os.path.basename(self._logdir), text)

    def _handle_result(self, result: dict) -> tuple[dict, dict]:
        if not self._is_defined:
            self._define_metrics()
        dialogues = result.pop(_DIALOGUES, [])
        log, config_update = super()._handle_result(result)
        figures = result.get("learners", {}).get("default_policy", {})
        log |= self._marks.of_update(figures)
        for key, histogram in ratio_histograms(figures).items():
            log[key] = self._wandb.Histogram(np_histogram=histogram)
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
        for key, summary in HEADLINES.items():
            self._wandb.define_metric(
                key, step_metric="training_iteration", summary=summary
            )
        self._is_defined = True
