"""Progress of a run: one line per iteration, evaluations on lines of their own."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console

#: Column title, path in the result, format.
_COLUMNS = (
    ("iter", "training_iteration", "{:>5.0f}"),
    ("success", "env_runners/success_rate", "{:>8.3f}"),
    ("return", "env_runners/episode_return_mean", "{:>7.3f}"),
    ("staleness", "learners/default_policy/staleness_mean", "{:>10.2f}"),
    ("kept by mask", "learners/default_policy/train_infer_mask", "{:>13.4f}"),
    ("clipped", "learners/default_policy/ppo_clip_fraction", "{:>8.4f}"),
    ("gen tok/s", "env_runners/generated_tokens_per_s", "{:>10.0f}"),
    ("version", "learners/default_policy/policy_version", "{:>8.0f}"),
)


#: After so long without a line a run says what it waits for.
QUIET_SECONDS = 60.0


class Progress(Callback):
    """Prints what a person watches while a run goes on."""

    def __init__(self) -> None:
        self._start = self._last_line = time.monotonic()
        self._num_lines = 0
        #: Success of every evaluation so far, in order.
        self.evaluations: list[float] = []

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info):
        # Anew when a saved run is resumed.
        self._start = self._last_line = time.monotonic()

    def phase(self, text: str) -> None:
        """Says what is being waited for."""
        self._last_line = time.monotonic()
        _print(f"[dim]{self._seconds():>6.0f} s[/dim]  {text}")

    def on_step_end(self, iteration, trials, **info) -> None:
        if time.monotonic() - self._last_line < QUIET_SECONDS:
            return
        for trial in trials:
            if trial.status == Trial.RUNNING:
                done = (trial.last_result or {}).get("training_iteration", 0)
                waits = (
                    f"for iteration {done + 1}: episodes, the update or an evaluation"
                    if done
                    else "for engines, the first evaluation and the first episodes"
                )
                self.phase(f"{trial}: still waiting {waits}")

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        self.phase(f"{trial}: running")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        self._print_evaluation(result, "evaluation_at_start")
        for warning in result.get("semantics_warnings", []):
            _print(f"{'':>8}  [yellow]note: {warning}[/yellow]")
        if self._num_lines % 20 == 0:
            titles = "  ".join(
                title.rjust(len(form.format(0))) for title, _, form in _COLUMNS
            )
            _print(f"[bold]{'':>8}  {titles}[/bold]")
        self._num_lines += 1
        self._last_line = time.monotonic()
        cells = "  ".join(_cell(result, path, form) for _, path, form in _COLUMNS)
        _print(f"[dim]{self._seconds():>6.0f} s[/dim]  {cells}")
        self._print_evaluation(result, "evaluation")

    def _print_evaluation(self, result, key: str) -> None:
        evaluation = _lookup(result, f"{key}/env_runners")
        if evaluation:
            self.evaluations.append(evaluation["success_rate"])
            _print(
                f"{'':>8}  [green]held-out tasks: success "
                f"{evaluation['success_rate']:.3f} over "
                f"{evaluation['num_episodes']:.0f} episodes[/green]"
            )

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        _print(f"[red]{trial} failed[/red]: {trial.error_file}")

    def _seconds(self) -> float:
        return time.monotonic() - self._start


def _print(markup: str) -> None:
    # Made anew each time: Tune pickles its callbacks, and a console holds locks.
    Console(highlight=False, soft_wrap=True).print(markup)


def _lookup(result: dict[str, Any], path: str) -> Any:
    node: Any = result
    for key in path.split("/"):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _cell(result: dict[str, Any], path: str, form: str) -> str:
    value = _lookup(result, path)
    known = value is not None and value == value
    return form.format(value) if known else "-".rjust(len(form.format(0)))
