"""What SIGINT, SIGTERM and SIGUSR1 do to `rllib train`: save, then end.

Trials that have learned something since their last checkpoint are asked to write one.
They do so where they wait for episodes, so that a save waits for the update or the
evaluation under way, not for a whole iteration. After `SECONDS_TO_SAVE` the run ends
without; SIGUSR1 is sent ahead of time by a job scheduler, which itself knows when time
is over. A second signal ends the run at once. The exit code is that of a shell: 128 and
the signal's number.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from rllib_llm_async.cli.stop_signals import StopSignals
from rllib_llm_async.monitoring.status_board import Wish, start_status_board

#: How long a run that is stopped waits for its checkpoints.
SECONDS_TO_SAVE = {
    signal.SIGINT: 120.0,
    signal.SIGTERM: 120.0,
    signal.SIGUSR1: 3600.0,
}


class SaveAndEnd(Callback):
    """Ends a run of Tune once its trials have saved.

    Args:
        signals: Handled while the run goes on.
        say: Prints a line.
    """

    def __init__(self, signals: StopSignals, say: Callable[[str], None]) -> None:
        self._signals = signals
        self._say = say
        self._board: Any = None
        self._deadline: float | None = None
        self._asked = False
        self._end_tune: Any = None

    def __reduce__(self):
        # Tune keeps its callbacks; a run that goes on is given others.
        return Callback, ()

    def setup(self, **info) -> None:
        self._board = start_status_board()
        if threading.current_thread() is threading.main_thread():
            # Tune's own way to end its loop, with the state of all trials written.
            self._end_tune = signal.getsignal(signal.SIGINT)
            self._signals.install()
            self._signals.awaited = True

    def on_step_end(self, iteration, trials, **info) -> None:
        if self._signals.received is None:
            return
        unsaved = self._unsaved(trials)
        seconds = SECONDS_TO_SAVE[self._signals.received]
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds
            if unsaved:
                self._say(
                    f"{self._signals.received.name}: saving a checkpoint, for at most "
                    f"{seconds:.0f} s; a second signal ends at once"
                )
        late = time.monotonic() > self._deadline
        if unsaved and late:
            self._say(
                f"not saved within {seconds:.0f} s, since an update or an "
                "evaluation went on; --resume goes on from the last checkpoint"
            )
        if late or not unsaved:
            self._end()
        elif not self._asked and not any(trial.is_saving for trial in unsaved):
            self._asked = True
            ray.get(self._board.want.remote(Wish.SAVE))

    def _end(self) -> None:
        self._signals.awaited = False
        self._end_tune(signal.SIGINT, None)
        self._signals.install()  # Tune gives SIGINT back to whoever had it before
        ray.get(self._board.want.remote(Wish.END))

    def _unsaved(self, trials: list[Trial]) -> list[Trial]:
        """Trials that have learned something which no checkpoint holds."""
        saved = ray.get(self._board.fulfilled.remote())
        return [
            trial
            for trial in trials
            if trial.status == Trial.RUNNING
            and trial.storage.trial_dir_name not in saved
            and _iteration(trial.run_metadata.last_result)
            > _iteration(getattr(trial.latest_checkpoint_result, "metrics", None))
        ]


def _iteration(result: dict[str, Any] | None) -> int:
    return (result or {}).get("training_iteration") or 0
