"""What an env runner counts of its suite, and when failures end it; no engine."""

import pickle
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_llm_async.env_runners import llm_env_runner
from rllib_llm_async.env_runners.llm_env_runner import CallbackError, LLMEnvRunner
from rllib_llm_async.env_runners.runner_metrics import RunnerMetrics
from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.monitoring.timeline import Timeline


class CountingSuite:
    calls = 0.0

    def metrics(self):
        return {"user_calls_lifetime": self.calls}


class Recorder:
    """In place of RLlib's logger: sums up what is logged."""

    def __init__(self):
        self.sums = defaultdict(float)

    def log_value(self, key, value, **kwargs):
        self.sums[key] += value

    def reduce(self):
        return dict(self.sums)


@pytest.fixture
def runner():
    runner = object.__new__(LLMEnvRunner)
    runner.suite, runner.metrics = CountingSuite(), Recorder()
    runner.engine = SimpleNamespace(
        num_generated_tokens=0,
        paused_seconds=0.0,
        sync_seconds=[],
        probe_errors=[],
        num_weight_mismatches=0,
        timeline=Timeline("engine 1"),
    )
    runner.engine.each = (runner.engine,)
    runner.config = SimpleNamespace(callbacks_class=[])
    runner._counters = RunnerMetrics(runner)
    runner._player = SimpleNamespace(num_played=0)
    runner.failure, runner._num_env_failures = None, 0
    runner._failure_is_reported, runner._coordinator = False, "the run's"
    return runner


def test_totals_of_the_suite_are_logged_once(runner):
    for runner.suite.calls in (3.0, 3.0, 10.0):
        logged = runner.get_metrics()
    # 3 + 0 + 7: the logger adds up what is new.
    assert logged["user_calls_lifetime"] == 10.0
    runner.suite = object()
    assert runner.get_metrics()["user_calls_lifetime"] == 10.0


def test_what_a_suite_cannot_tell_is_left_out_and_said_once(runner, caplog):
    told = [
        {"num_found": 3, "latency": [0.1, 0.2], "rate": float("nan"), 7: 1.0},
        RuntimeError("database is closed"),
        None,
        {"num_found": np.int64(10)},
    ]

    def metrics():
        answer = told.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    runner.suite.metrics = metrics
    while told:
        logged = runner.get_metrics()
    # 3, then 7 more: what was told before two failures is not told again.
    assert logged["num_found"] == 10
    assert not {"latency", "rate", 7} & logged.keys()
    (warning,) = caplog.records
    assert "CountingSuite.metrics() gives no finite number for" in warning.getMessage()


def test_each_arrival_of_weights_is_logged_and_the_last_one_stands(runner):
    runner.engine.probe_errors[:] = [0.25, 0.5]
    runner.engine.num_weight_mismatches = 2
    assert runner.get_metrics()["weight_probe_error"] == 0.75
    logged = runner.get_metrics()  # nothing has arrived: the last one again
    assert logged["weight_probe_error"] == 0.75 + 0.5
    assert logged["num_weight_mismatches"] == 2


def test_engines_of_a_runner_add_up(runner):
    engines = [
        SimpleNamespace(
            num_generated_tokens=10 * number,
            paused_seconds=0.0,
            sync_seconds=[0.1 * number],
            probe_errors=[],
            num_weight_mismatches=number,
            timeline=Timeline(f"engine 1.{number}"),
        )
        for number in (1, 2)
    ]
    runner.engine = SimpleNamespace(each=engines)
    logged = runner.get_metrics()
    assert logged["num_generated_tokens_lifetime"] == 30
    assert logged["num_weight_mismatches"] == 3
    assert logged["weight_sync_seconds"] == pytest.approx(0.3)
    assert [engine.sync_seconds for engine in engines] == [[], []]


def test_an_environment_that_never_works_ends_the_run(runner, caplog):
    for _ in range(llm_env_runner.MAX_FAILURES_AT_START):
        runner.assert_healthy()
        runner._count_env_failure(EpisodeError("env_config.user: refused"))
    with pytest.raises(RuntimeError) as error:
        runner.assert_healthy()
    assert "refused" in str(error.value)
    assert isinstance(error.value.__cause__, llm_env_runner.BrokenEnvironmentError)
    assert len(caplog.records) == 7  # the 1st, 2nd, 4th, ..., 64th


def test_what_a_callback_raises_reaches_the_driver_in_its_own_words(runner):
    class Misspelt(RLlibCallback):
        def on_episode_end(self, *, episode, **kwargs):
            return {}["turns"]

    runner.config = SimpleNamespace(
        callbacks_class=Misspelt, callbacks_on_episode_end=None
    )
    runner._counters = RunnerMetrics(runner)
    with pytest.raises(CallbackError):
        runner._call_back("on_episode_end", None, None)
    _, failure = pickle.loads(pickle.dumps(runner.healthy_metrics("the run's")))
    assert type(failure) is CallbackError
    assert f"on_episode_end raised KeyError('turns') ({__file__}" in str(failure)
    with pytest.raises(RuntimeError, match="KeyError"):
        runner.healthy_metrics("the run's")


def test_another_failure_is_told_in_a_class_that_the_driver_knows(runner):
    class OfTheSuiteError(Exception):
        pass

    assert runner.healthy_metrics("the run's")[1] is None
    runner._fail(OfTheSuiteError("gone"))
    _, failure = runner.healthy_metrics("the run's")
    assert type(failure) is RuntimeError and str(failure) == "OfTheSuiteError('gone')"


def test_an_environment_that_has_worked_is_waited_for(runner):
    runner._player.num_played = 1
    for _ in range(10 * llm_env_runner.MAX_FAILURES_AT_START):
        runner._count_env_failure(EpisodeError("env_config.user: refused"))
    runner.assert_healthy()
    assert runner.metrics.sums["num_env_failures"] == 640
