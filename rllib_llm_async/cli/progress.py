"""Progress of a run: a line per iteration and evaluation, in a terminal a live view.

Lines are for everybody, a file included. A terminal also shows, below them, what each
trial is doing this moment.
"""

from __future__ import annotations

import atexit
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rllib_llm_async import result_keys
from rllib_llm_async.monitoring.status_board import start_status_board
from rllib_llm_async.result_keys import learner, runners

#: Column title, path in the result, format. With the time and the number of a trial
#: before them, they fit a terminal of 80 columns.
_COLUMNS = (
    ("iter", "training_iteration", "{:>4.0f}"),
    ("success", runners(result_keys.SUCCESS_RATE), "{:>7.3f}"),
    ("return", "env_runners/episode_return_mean", "{:>6.3f}"),
    ("staleness", learner(result_keys.STALENESS_MEAN), "{:>9.2f}"),
    ("kept", learner(result_keys.TRAIN_INFER_MASK), "{:>6.4f}"),
    ("clipped", learner(result_keys.PPO_CLIP_FRACTION), "{:>7.4f}"),
    ("tok/s", runners(result_keys.GENERATED_TOKENS_PER_S), "{:>6.0f}"),
    ("version", learner(result_keys.POLICY_VERSION), "{:>7.0f}"),
)
#: Iterations after which the rest of the run is estimated, and again with the titles.
_ESTIMATE_AFTER = 3
_TITLES_EVERY = 20
#: After so long without a line a run says what it waits for.
QUIET_SECONDS = 60.0
#: How often trials are asked what they do.
POLL_SECONDS = 0.5
#: How Ray begins the stack of an actor that could not be made.
_IN_INIT = "in its creation task"
#: Where a trial is before it has said anything.
STARTING = "starting engines and learners"
STARTED = "engines and learners are up"
#: Where a run is of which no trial has begun.
WAITING = "waiting until the cluster has room for a trial"
#: Iterations that the curve of a live view shows, and what it is drawn with.
_CURVE_LENGTH = 24
_BARS = "▁▂▃▄▅▆▇█"


class Progress(Callback):
    """Prints what a person watches while a run goes on.

    Args:
        num_iterations: After which a trial stops; None if that is not known.
    """

    def __init__(self, num_iterations: float | None = None) -> None:
        self._num_iterations = num_iterations
        self._start = self._last_line = self._last_poll = time.monotonic()
        self._num_lines = 0
        self._success: dict[str, list[float]] = defaultdict(list)
        #: By trial: when it failed last (Unix time); its iterations and their times.
        self._restarted: dict[str, float] = {}
        self._ends: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._trials: list[Trial] = []
        self._board: Any = None
        self._answer: Any = None
        #: By a trial's directory: what it is doing, and since when (Unix time).
        self._doing: dict[str, tuple[str, float]] = {}
        self._live: Live | None = None

    def __reduce__(self):
        # Tune keeps its callbacks for --resume: what a new run has to know.
        return Progress, (self._num_iterations,)

    # --- Called by Tune -----------------------------------------------------------

    def setup(self, stop=None, num_samples=None, total_num_samples=None, **info):
        self._start = self._last_line = time.monotonic()
        self._board = start_status_board()
        console = Console(highlight=False, soft_wrap=True)
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._view, console=console, transient=True
            )
            self._live.start()
            atexit.register(self._live.stop)  # gives the cursor back

    def on_step_end(self, iteration, trials, **info) -> None:
        self._trials = list(trials)
        self._poll()
        if time.monotonic() - self._last_line < QUIET_SECONDS or self._live:
            return
        begun = [
            trial
            for trial in trials
            # While its actor is made, a trial is pending, but writes on the board.
            if trial.status == Trial.RUNNING
            or (
                trial.status == Trial.PENDING
                and trial.storage.trial_dir_name in self._doing
            )
        ]
        for trial in begun:
            self.say(f"{_label(trial, trials)}{self._what(trial)}")
        if trials and not begun:
            self.say(_what_is_missing(trials[0]))

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        settings = ", ".join(f"{k}={v}" for k, v in trial.evaluated_params.items())
        self.say(f"{_label(trial, trials)}{escape(settings or str(trial))}: {STARTED}")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        label = _label(trial, trials)
        self._print_evaluation(label, result, result_keys.EVALUATION_AT_START)
        for warning in result.get(result_keys.SEMANTICS_WARNINGS, []):
            self._print(f"{'':>8}  [yellow]note: {label}{escape(warning)}[/yellow]")
        self._ends[trial.trial_id].append(
            (time.monotonic(), result["training_iteration"])
        )
        if self._num_lines % _TITLES_EVERY == 0:
            titles = "  ".join(
                title.rjust(len(form.format(0))) for title, _, form in _COLUMNS
            )
            self._print(f"[bold]{'':>8}  {'':>{len(label)}}{titles}[/bold]")
        self._num_lines += 1
        cells = "  ".join(_cell(result, path, form) for _, path, form in _COLUMNS)
        self.say(f"{label}{cells}")
        self._print_evaluation(label, result, "evaluation")
        if self._num_lines % _TITLES_EVERY == _ESTIMATE_AFTER:
            left = self._time_left(trial)
            if left:
                self._print(f"{'':>8}  {label}{left}")
        success = _lookup(result, runners(result_keys.SUCCESS_RATE))
        if success is not None and success == success:
            self._success[trial.trial_id].append(success)

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        self._restarted[trial.trial_id] = time.time()
        checkpoint = trial.latest_checkpoint_result
        start = (
            f"iteration {checkpoint.metrics.get('training_iteration') or 0} "
            f"({checkpoint.checkpoint.path})"
            if checkpoint
            else "iteration 0, there is no checkpoint yet"
        )
        limit = "" if trial.max_failures < 0 else f" of {trial.max_failures}"
        self.say(
            f"[yellow]{_label(trial, trials)}failed: "
            f"{escape(one_line(_newest_error(trial)))}; "
            f"restart {trial.num_failures}{limit} from {escape(start)}[/yellow]"
        )

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        self._print(f"[red]{trial} failed[/red]: {trial.error_file}")

    def on_experiment_end(self, trials, **info) -> None:
        if self._answer is not None:
            self._read_answer()
        self._answer = self._ask_board()
        self._read_answer()
        if self._live is not None:
            self._live.stop()
            self._live = None

    # --- Lines --------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Prints a line with the time since the start."""
        self._last_line = time.monotonic()
        self._print(f"[dim]{self._last_line - self._start:>6.0f} s[/dim]  {text}")

    def _print_evaluation(self, label: str, result, key: str) -> None:
        evaluation = _lookup(result, f"{key}/env_runners")
        if not evaluation:
            return
        success = evaluation.get(result_keys.SUCCESS_RATE)
        line = "no episode came to its end"
        if success is not None:
            line = (
                f"success {success:.3f} over {evaluation['num_episodes']:.0f} episodes"
            )
        self._print(f"{'':>8}  [green]{label}held-out tasks: {line}[/green]")

    def _print(self, markup: str) -> None:
        # Through the live view, if there is one, so that it stays below the lines.
        console = (
            self._live.console
            if self._live
            else Console(highlight=False, soft_wrap=True)
        )
        console.print(markup)

    # --- What trials are doing ----------------------------------------------------

    def _poll(self) -> None:
        """Asks the board now and then; never waits for it."""
        if self._answer is None:
            if time.monotonic() - self._last_poll >= POLL_SECONDS:
                self._last_poll = time.monotonic()
                self._answer = self._ask_board()
        elif len(ray.wait(self._answer, num_returns=2, timeout=0)[0]) == 2:
            self._read_answer()

    def _ask_board(self) -> list[Any]:
        return [self._board.read.remote(), self._board.take_notices.remote()]

    def _read_answer(self) -> None:
        self._doing, notices = ray.get(self._answer)
        self._answer = None
        for directory, text in notices:
            self._warn(directory, text)

    def _warn(self, directory: str, text: str) -> None:
        """Prints what a trial has left on the board."""
        of = [t for t in self._trials if t.storage.trial_dir_name == directory]
        label = _label(of[0], self._trials) if of else ""
        self.say(f"[yellow]{label}{escape(text)}[/yellow]")

    def _what(self, trial: Trial) -> str:
        now = time.time()
        restarted = self._restarted.get(trial.trial_id, 0.0)
        begun = restarted or trial.run_metadata.start_time or now
        text, since = self._doing.get(trial.storage.trial_dir_name, (STARTING, begun))
        if since < restarted:  # what its actor of before wrote
            text, since = STARTING, restarted
        return f"{text}, for {max(0.0, now - since):.0f} s"

    def _time_left(self, trial: Trial) -> str:
        """How long it goes on at the pace of its last iterations, if that is known."""
        ends = self._ends[trial.trial_id][-_TITLES_EVERY:]
        if not self._num_iterations or len(ends) < _ESTIMATE_AFTER:
            return ""
        (first, start), (last, done) = ends[0], ends[-1]
        if done <= start:
            return ""
        seconds = (self._num_iterations - done) * (last - first) / (done - start)
        if seconds < 60:
            return f"less than a minute to iteration {self._num_iterations:.0f}"
        hours, minutes = divmod(round(seconds / 60), 60)
        about = f"{hours} h {minutes} min" if hours else f"{minutes} min"
        return f"about {about} to iteration {self._num_iterations:.0f}"

    def _view(self) -> Group:
        """The live view: a row per running trial."""
        table = Table.grid(padding=(0, 2))
        for trial in self._running():
            done = (trial.last_result or {}).get("training_iteration", 0)
            count = f"{done}"
            cells: list[Any] = [_label(trial, self._trials).strip()]
            if self._num_iterations:
                count += f"/{self._num_iterations:.0f}"
                cells.append(ProgressBar(self._num_iterations, done, width=20))
            cells += [count, self._curve(trial), Text(self._what(trial), style="dim")]
            table.add_row(*cells)
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        header = f"{minutes}:{seconds:02d} elapsed"
        if not table.row_count:
            header += f", {self._without_a_trial()}"
        elif left := [*filter(None, map(self._time_left, self._running()))]:
            header += f", {left[0]}"
        return Group(Text(header, style="dim"), table)

    def _running(self) -> list[Trial]:
        return [trial for trial in self._trials if trial.status == Trial.RUNNING]

    def _without_a_trial(self) -> str:
        """What goes on while none is running."""
        if not self._trials:
            return "preparing the first trial"
        if all(trial.is_finished() for trial in self._trials):
            return "writing down the end of the run"
        waiting = [trial for trial in self._trials if trial.status == Trial.PENDING]
        return self._what(waiting[0]) if waiting else "between two trials"

    def _curve(self, trial: Trial) -> str:
        success = self._success[trial.trial_id][-_CURVE_LENGTH:]
        if not success:
            return ""
        bars = "".join(
            _BARS[min(int(value * len(_BARS)), len(_BARS) - 1)] for value in success
        )
        return f"success {success[-1]:.3f} {bars}"


def _what_is_missing(trial: Trial) -> str:
    needed = trial.placement_group_factory.required_resources
    free = ray.available_resources()
    missing = [name for name in needed if needed[name] > free.get(name, 0)]
    if not missing:
        return STARTING
    return f"{WAITING}: " + ", ".join(
        f"{needed[name]:g} {name}s, {free.get(name, 0):g} are free" for name in missing
    )


def one_line(error: object) -> str:
    """What went wrong, without the stack; the files of the trial hold the rest."""
    cause: Any = error
    while getattr(cause, "cause", None) is not None:  # an actor's, of its own actor's
        cause = cause.cause
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if isinstance(cause, RayActorError) and _IN_INIT not in lines[0]:
        # A sentence, then a detail a line.
        pids = [line for line in lines[1:] if line.startswith("pid: ")]
        return " ".join([lines[0].rstrip("."), *(f"({pid})" for pid in pids)])
    return lines[-1] if lines else repr(cause)


def _newest_error(trial: Trial) -> object:
    # Not `Trial.get_error`, which looks where it is copied to later.
    for path, read in (
        (trial.pickled_error_file, lambda path: cloudpickle.loads(path.read_bytes())),
        (trial.error_file, Path.read_text),
    ):
        if path and Path(path).exists():
            return read(Path(path))
    return "for an unknown reason"


def _label(trial: Trial, trials: list[Trial]) -> str:
    """Which of several trials a line is about: "#3 "."""
    return f"#{trials.index(trial) + 1} " if len(trials) > 1 else ""


def _lookup(result: dict[str, Any], path: str) -> Any:
    node: Any = result
    for key in path.split("/"):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _cell(result: dict[str, Any], path: str, form: str) -> str:
    value = _lookup(result, path)
    known = value is not None and value == value
    return form.format(value) if known else "-".rjust(len(form.format(0)))
