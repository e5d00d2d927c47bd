"""TensorBoard: Tune's logger, with the names and groups that W&B has.

`rllib train` uses it; in Python it is a callback of `ray.tune.RunConfig`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.tune.logger import TBXLoggerCallback
from ray.tune.utils import flatten_dict

from rllib_llm_async.monitoring.dialogues import newest_dialogues, render_text
from rllib_llm_async.monitoring.panels import HEADLINES, PANELS, Marks, ratio_histograms

#: Of a result, what is no figure.
_LEFT_OUT = ("config", "pid", "timestamp", "done", "should_checkpoint")


class TensorBoardLogger(TBXLoggerCallback):
    """Logs every figure under its result key, at the step ``training_iteration``.

    - Scalars: ``learners/default_policy/train_infer_mask`` and so on.
    - Custom scalars: the panels of `PANELS`, in their groups.
    - Histograms ``ratios/log_r_d`` and ``ratios/log_r_s``; marks under ``marks/``.
    - Text: the sample dialogues of each evaluation.
    - Hyperparameters: what a sweep searches, against `HEADLINES`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._marks: dict[Any, Marks] = {}

    def log_trial_start(self, trial):
        super().log_trial_start(trial)
        self._marks[trial] = Marks()
        self._trial_writer[trial].add_custom_scalars(
            {
                group: {title: ["Multiline", keys] for title, keys in panels.items()}
                for group, panels in PANELS.items()
            }
        )

    def log_trial_result(self, iteration, trial, result):
        if trial not in self._trial_writer:
            self.log_trial_start(trial)
        writer, step = self._trial_writer[trial], result["training_iteration"]
        figures = result.get("learners", {}).get("default_policy", {})
        kept = {key: v for key, v in result.items() if key not in _LEFT_OUT}
        scalars = {
            key: float(value)
            for key, value in flatten_dict(kept, delimiter="/").items()
            if _is_figure(value)
        } | self._marks[trial].of_update(figures)
        for key, value in scalars.items():
            writer.add_scalar(key, value, global_step=step)
        for key, (counts, edges) in ratio_histograms(figures).items():
            _add_histogram(writer, key, counts, edges, step)
        if "evaluation" in result:
            for dialogue in newest_dialogues(trial):
                key = f"dialogues/{dialogue['task']}"
                writer.add_text(key, _as_code(render_text(dialogue)), global_step=step)
        self._trial_result[trial] = {k: v for k, v in scalars.items() if k in HEADLINES}
        writer.flush()

    def log_trial_end(self, trial, failed=False):
        super().log_trial_end(trial, failed)
        self._marks.pop(trial, None)


def _is_figure(value: Any) -> bool:
    is_number = isinstance(value, int | float | np.number)
    return is_number and not isinstance(value, bool) and bool(np.isfinite(value))


def _add_histogram(
    writer: Any, key: str, counts: np.ndarray, edges: np.ndarray, step: int
) -> None:
    """Of counts: tensorboardX makes the moments that it wants from single values."""
    middles = (edges[1:] + edges[:-1]) / 2
    writer.add_histogram_raw(
        key,
        min=edges[0],
        max=edges[-1],
        num=int(counts.sum()),
        sum=float(counts @ middles),
        sum_squares=float(counts @ middles**2),
        bucket_limits=edges[1:].tolist(),
        bucket_counts=counts.tolist(),
        global_step=step,
    )


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is: what models say is no markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
