"""Signals: the first one saves, the second one ends, whatever is under way."""

import os
import signal
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from rllib_llm_async.cli import interruption
from rllib_llm_async.cli import interruption as module
from rllib_llm_async.cli.interruption import SaveAndEnd
from rllib_llm_async.cli.stop_signals import SIGNALS, StopSignals
from rllib_llm_async.monitoring.status_board import StatusBoard, Wish


class Method:
    """A method of an actor that is here."""

    def __init__(self, method):
        self.remote = method


@pytest.fixture
def board(monkeypatch):
    board = StatusBoard()
    handle = SimpleNamespace(
        **{name: Method(getattr(board, name)) for name in ("want", "fulfilled")}
    )
    monkeypatch.setattr(interruption, "start_status_board", lambda: handle)
    monkeypatch.setattr(interruption.ray, "get", lambda value: value)
    return board


def trial(name, *, iteration, saved, status=Trial.RUNNING, is_saving=False):
    checkpoint = SimpleNamespace(metrics={"training_iteration": saved})
    return SimpleNamespace(
        status=status,
        is_saving=is_saving,
        storage=SimpleNamespace(trial_dir_name=name),
        run_metadata=SimpleNamespace(last_result={"training_iteration": iteration}),
        latest_checkpoint_result=checkpoint if saved else None,
    )


@pytest.fixture
def run(board):
    """What Tune would do: its loop goes on until `ended` is true."""
    signals = StopSignals()
    run = SimpleNamespace(signals=signals, said=[], ended=False, time=0.0)

    def tune_ends(number, frame):
        run.ended = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Tune puts another one back

    with signals.handled():
        signal.signal(signal.SIGINT, tune_ends)
        run.callback = SaveAndEnd(signals, run.said.append)
        run.callback.setup()
        run.step = lambda *trials: run.callback.on_step_end(1, list(trials))
        yield run


def test_a_signal_waits_for_a_checkpoint_of_each_trial(run, board):
    first, second = trial("a", iteration=3, saved=0), trial("b", iteration=2, saved=1)
    run.step(first, second)
    assert not run.ended and board.wish("a") is None
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(2):
        run.step(first, second)
        assert not run.ended and board.wish("a") is board.wish("b") is Wish.SAVE
    board.fulfil("a")
    run.step(first, second)
    assert not run.ended and board.wish("a") is None
    board.fulfil("b")
    run.step(first, second)
    assert run.ended and board.wish("a") is board.wish("b") is Wish.END
    assert run.signals.received is signal.SIGTERM and len(run.said) == 1
    with pytest.raises(SystemExit):  # while Tune cleans up
        os.kill(os.getpid(), signal.SIGINT)


def test_a_save_under_way_is_not_asked_for_again(run, board):
    os.kill(os.getpid(), signal.SIGUSR1)
    run.step(trial("a", iteration=10, saved=9, is_saving=True))
    assert not run.ended and board.wish("a") is None
    run.step(trial("a", iteration=10, saved=10))
    assert run.ended


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial("a", iteration=0, saved=0)],
        [trial("a", iteration=4, saved=4)],
        [trial("a", iteration=4, saved=0, status=Trial.TERMINATED)],
    ],
)
def test_nothing_to_save(run, trials):
    os.kill(os.getpid(), signal.SIGINT)
    run.step(*trials)
    assert run.ended and not run.said


def test_a_save_that_takes_too_long(run, monkeypatch):
    monkeypatch.setattr(interruption.time, "monotonic", lambda: run.time)
    os.kill(os.getpid(), signal.SIGINT)
    for run.time, ended in ((0.0, False), (119.0, False), (121.0, True)):
        run.step(trial("a", iteration=3, saved=0))
        assert run.ended is ended
    assert "not saved within 120 s" in run.said[-1]


def test_each_signal_is_answered_at_once(run, capfd):
    os.kill(os.getpid(), signal.SIGTERM)
    said = capfd.readouterr().err
    assert said.startswith("SIGTERM: stopping") and said.count("\n") == 1
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == "SIGINT: ending now\n"


def test_a_second_signal_ends_at_once(run):
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        os.kill(os.getpid(), signal.SIGINT)
    assert exit_.value.code == 130


def test_a_signal_before_and_after_trials_run_ends_at_once(run):
    run.signals.awaited = False
    with pytest.raises(SystemExit) as exit_:
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_.value.code == 143 and run.signals.received is None


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals().handled():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, True), (signal.SIGUSR1, False)]
)
def test_a_job_scheduler_knows_when_time_is_over(run, board, monkeypatch, number, ends):
    """It sends SIGUSR1 ahead of time; a checkpoint of a large model takes minutes."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    unsaved = trial("a", iteration=3, saved=0)
    os.kill(os.getpid(), number)
    run.step(unsaved)
    now = 300.0
    run.step(unsaved)
    assert run.ended is ends
    now = 3700.0
    run.step(unsaved)
    assert run.ended and "not saved within" in run.said[-1]
