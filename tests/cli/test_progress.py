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
    assert "#2    3    0.500" in out
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


def test_lines_fit_80_columns(clock, reporter, capsys):
    trials = [running_trial(f"a_0000{n}") for n in range(12)]
    clock.now = 99999.0
    learner = {
        "staleness_mean": 12.34,
        "train_infer_mask": 0.9876,
        "ppo_clip_fraction": 0.0123,
        "policy_version": 1234.0,
    }
    full = result(1234, 0.5, learners={"default_policy": learner})
    full["env_runners"] |= {"episode_return_mean": -0.5, "generated_tokens_per_s": 9e4}
    reporter.on_trial_result(0, trials, trials[11], full)
    titles, line = capsys.readouterr().out.splitlines()
    assert len(titles) == len(line) <= 80
    assert line.replace("s", "").split() == [
        *("99999", "#12", "1234", "0.500", "-0.500", "12.34", "0.9876", "0.0123"),
        *("90000", "1234"),
    ]


def test_a_phase_of_before_a_restart_is_not_shown(clock, reporter, tmp_path):
    trial = running_trial("a_00000")
    trial.storage.trial_driver_staging_path = str(tmp_path)
    reporter._doing = {"dir_a_00000": ("waiting for the update", 50.0)}
    clock.now = 60.0
    assert reporter._what(trial) == "waiting for the update, for 10 s"
    trial.max_failures = 3
    reporter.on_trial_recover(0, [trial], trial)
    clock.now = 62.0
    assert reporter._what(trial) == f"{progress.STARTING}, for 2 s"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "preparing the first trial"),
        (Trial.PENDING, progress.STARTING),
        (Trial.TERMINATED, "writing down the end of the run"),
        (Trial.ERROR, "writing down the end of the run"),
    ],
)
def test_the_live_view_without_a_running_trial(clock, reporter, status, words):
    if status is not None:
        trial = running_trial("a_00000")
        trial.set_status(status)
        reporter._trials = [trial]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(reporter._view())
    assert words in console.export_text()


def test_the_rest_is_estimated_from_the_last_iterations(clock, reporter, capsys):
    trial = running_trial("a_00000")
    for number, clock.now in ((1, 100.0), (2, 130.0), (3, 160.0)):
        reporter.on_trial_result(0, [trial], trial, result(number, 0.5))
    # 7 of 10 iterations are left, 30 s each: 210 s.
    assert "about 4 min to iteration 10" in capsys.readouterr().out
    reporter._num_iterations = 503
    assert reporter._time_left(trial) == "about 4 h 10 min to iteration 503"
    reporter._num_iterations = 4
    assert reporter._time_left(trial) == "less than a minute to iteration 4"
    reporter._num_iterations = None
    assert reporter._time_left(trial) == ""


def test_an_error_of_an_actor_within_an_actor_is_its_last_sentence():
    stack = "ray::Runner.__init__()\n  File x, line 3\nValueError: no such model"
    died = ActorDiedError()
    died.error_msg = (
        f"The actor died because of an error raised in its creation task, {stack}"
    )
    outer = RayTaskError("train", "Traceback", died)
    assert progress.one_line(outer) == "ValueError: no such model"
    nested = RayTaskError("a", "T", RayTaskError("b", "T", ValueError("the cause")))
    assert progress.one_line(nested) == "the cause"
