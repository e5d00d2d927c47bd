"""What a run prints, and what its live view shows."""

import io
import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from rich.console import Console

from rllib_llm_async.cli import progress


def running_trial(trial_id):
    trial = Trial("__fake", stub=True, trial_id=trial_id)
    trial.storage = SimpleNamespace(trial_dir_name=f"dir_{trial_id}")
    trial.set_status(Trial.RUNNING)
    trial.run_metadata.start_time = 1.0
    return trial


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = clock.time = lambda: clock.now
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def reporter(clock, monkeypatch):
    monkeypatch.setattr(progress.Progress, "_poll", lambda self: None)
    return progress.Progress(num_iterations=10)


def result(iteration, success, **more):
    return {
        "training_iteration": iteration,
        "env_runners": {"success_rate": success},
        **more,
    }


def test_a_quiet_run_says_what_it_waits_for(clock, reporter, capsys):
    trial = running_trial("a_00000")

    def said(seconds):
        clock.now += seconds
        reporter.on_step_end(0, [trial])
        return capsys.readouterr().out

    assert said(59) == ""
    assert f"{progress.STARTING}, for 60 s" in said(2)  # 59 + 2 - 1
    assert said(30) == ""
    reporter._doing = {trial.storage.trial_dir_name: ("waiting for the update", 70.0)}
    assert "waiting for the update, for 52 s" in said(31)  # 59 + 2 + 30 + 31 - 70
    reporter.on_trial_result(0, [trial], trial, result(5, 0.5))
    capsys.readouterr()
    assert said(59) == ""


@pytest.mark.parametrize(
    ("free", "doing", "words"),
    [
        (2.0, {}, "has room for a trial: 3 CPUs, 2 are free"),
        (3.0, {}, progress.STARTING),
        (2.0, {"dir_a_00000": ("loading the model", 1.0)}, "loading the model, for"),
    ],
)
def test_a_run_without_a_trial_says_why(
    clock, reporter, capsys, monkeypatch, free, doing, words
):
    trial = running_trial("a_00000")
    trial.set_status(Trial.PENDING)
    trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1}, {"CPU": 2}])
    monkeypatch.setattr(progress.ray, "available_resources", lambda: {"CPU": free})
    reporter._doing = doing
    clock.now += 61
    reporter.on_step_end(0, [trial])
    assert words in capsys.readouterr().out


def test_a_restart_is_one_line(reporter, capsys, tmp_path):
    trial = running_trial("a_00000")
    trial.storage.trial_driver_staging_path = str(tmp_path)
    trial.max_failures = 3
    died = ActorDiedError()
    died.error_msg = "The actor died unexpectedly.\n\tpid: 7\nLong advice."
    trial.handle_error(RayTaskError("train", "Traceback\nlong", died))
    reporter.on_trial_recover(0, [trial], trial)
    said = capsys.readouterr().out
    assert "failed: The actor died unexpectedly (pid: 7); restart 1 of 3 from" in said
    assert "iteration 0, there is no checkpoint yet" in said

    checkpoint = SimpleNamespace(
        metrics={"training_iteration": 20}, checkpoint=SimpleNamespace(path="/r/c_2")
    )
    trial.run_metadata.checkpoint_manager._latest_checkpoint_result = checkpoint
    trial.handle_error(RayTaskError("train", "Traceback", ValueError("no\nnumber")))
    reporter.on_trial_recover(0, [trial], trial)
    said = capsys.readouterr().out
    assert "failed: number; restart 2 of 3 from iteration 20 (/r/c_2)" in said
    assert said.count("\n") == 1


def test_notices_of_trials_stay(clock, capsys, monkeypatch):
    notices = [[("dir_a_00000", "no checkpoint")], []]
    board = SimpleNamespace(
        read=SimpleNamespace(remote=dict),
        take_notices=SimpleNamespace(remote=lambda: notices.pop(0)),
    )
    monkeypatch.setattr(progress.ray, "wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr(progress.ray, "get", lambda value: value)
    monkeypatch.setattr(progress, "start_status_board", lambda: board)
    reporter = progress.Progress()
    reporter.setup()
    for _ in range(4):
        clock.now += progress.POLL_SECONDS
        reporter.on_step_end(0, [running_trial("a_00000")])
    assert capsys.readouterr().out.count("no checkpoint") == 1
    # Neither what is on its way when the run ends nor what came after it is lost.
    notices += [[("dir_a_00000", "disk full")], [("dir_a_00000", "disk full")]]
    clock.now += progress.POLL_SECONDS
    reporter.on_step_end(0, [])
    reporter.on_experiment_end([])
    assert capsys.readouterr().out.count("disk full") == 2


def test_lines_of_several_trials_say_which(reporter, capsys):
    trials = [running_trial(f"a_0000{n}") for n in range(2)]
    trials[1].evaluated_params = {"eps_ti": [1.1]}
    reporter.on_trial_start(0, trials, trials[1])
    assert "#2 eps_ti=[1.1]" in capsys.readouterr().out
    evaluation = {"env_runners": {"success_rate": 0.25, "num_episodes": 8}}
    reporter.on_trial_result(
        0, trials, trials[1], result(3, 0.5, evaluation=evaluation)
    )
    out = capsys.readouterr().out
    assert "#2     3     0.500" in out
    assert "#2 held-out tasks: success 0.250 over 8 episodes" in out
    reporter.on_trial_result(0, trials[:1], trials[0], result(3, 0.5))
    assert "#" not in capsys.readouterr().out


def test_the_live_view_shows_every_running_trial(clock, reporter):
    running, ended = running_trial("a_00000"), running_trial("a_00001")
    running.run_metadata.last_result = result(4, 0.5)
    ended.set_status(Trial.TERMINATED)
    for success in (0.0, 0.5, 1.0):
        reporter.on_trial_result(0, [running, ended], running, result(4, success))
    clock.now = 125.0
    reporter._doing = {
        running.storage.trial_dir_name: ("waiting for episodes, 3 of 8", 120.0)
    }
    reporter.on_step_end(0, [running, ended])
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(reporter._view())
    text = console.export_text()
    assert "2:05 elapsed" in text
    assert "waiting for episodes, 3 of 8, for 5 s" in text
    assert "4/10" in text and "#1" in text and "#2" not in text
    assert "success 1.000 ▁▅█" in text


def test_tune_can_keep_it_for_a_resumed_run(reporter):
    reporter.on_trial_result(
        0, [running_trial("a")], running_trial("a"), result(1, 0.5)
    )
    again = pickle.loads(pickle.dumps(reporter))
    assert again._num_iterations == 10 and not again._success
