"""The driver's side of the loop: counts, runners that come back, ends of a run."""

import asyncio
import pickle
from collections import deque
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.algorithms.async_decoupled_ppo import (
    async_decoupled_ppo,
    coordination,
    group_collector,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.coordination_state import (
    get_coordination_state,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.group_collector import (
    GroupCollector,
)
from rllib_llm_async.coordination.coordinator import Coordinator
from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.messages import NextBatch
from rllib_llm_async.env_runners.llm_env_runner import (
    BrokenEnvironmentError,
    CallbackError,
)
from tests.algorithms.test_evaluation import outcome


def make_collector(runners, metrics=None, on_recreated=None):
    return GroupCollector(
        AsyncDecoupledPPOConfig(),
        runners,
        metrics or MetricsLogger(),
        say=lambda text: None,
        between=lambda: None,
        on_recreated=on_recreated,
    )


def failing(error, num_runners=3):
    """Runners of which at every question one says that it has failed."""
    answers = [(MetricsLogger().reduce(), error)]
    return SimpleNamespace(
        num_remote_env_runners=lambda: num_runners,
        foreach_env_runner_async_fetch_ready=lambda *args, **kwargs: answers,
    )


def test_what_the_driver_counts_of_a_batch():
    metrics = MetricsLogger()
    collector = make_collector(None, metrics)
    one = outcome("a", True)
    outcomes = [
        type(one)(
            **{
                **vars(one),
                "num_turns": 3,
                "num_versions": versions,
                "num_malformed_tool_calls": 1,
            }
        )
        for versions in (1, 2, 3)
    ]
    collector._count(NextBatch(None, outcomes, {"lost": 4}, 0, ""))
    found = {
        key: metrics.peek(("env_runners", key))
        for key in (
            "num_episodes_lifetime",
            "num_env_steps_sampled_lifetime",
            "num_malformed_tool_calls",
            "num_multi_version_episodes_lifetime",
            "num_episodes_dropped_lost",
        )
    }
    assert [*found.values()] == [3, 9, 3, 2, 4]


def test_what_is_too_old_is_counted_once_whoever_dropped_it(algorithm):
    """As after a resume with a smaller bound: 24 by the coordinator, 3 by learners."""
    algorithm.metrics = metrics = MetricsLogger(root=True)
    algorithm._generated = deque([(0.0, 0.0)])
    algorithm._collector = make_collector(None, metrics)
    algorithm._collector._count(NextBatch(None, [], {"stale": 24, "lost": 8}, 0, ""))
    accounts = {"ledger/episodes/dropped_stale": 27.0}
    algorithm._coordination = SimpleNamespace(accounts=accounts)
    for _ in range(3):
        algorithm._log_sampling_totals()
        found = metrics.compile()["env_runners"]
        assert found["num_episodes_dropped_stale"] == 27
        assert found["num_episodes_dropped_lost"] == 8


@pytest.mark.parametrize(("kept", "mean"), [(True, 6 / 8), (False, 4 / 4)])
def test_means_over_recent_episodes_go_on_from_a_checkpoint(algorithm, kept, mean):
    """2 of 4 succeed before it, all 4 since; older checkpoints keep none of them."""
    algorithm.metrics = metrics = MetricsLogger(root=True)
    algorithm.env_runner_group = algorithm.eval_env_runner_group = None
    algorithm._iteration = 1
    algorithm._collector = make_collector(None, metrics)
    before = [outcome("a", success) for success in (True, False, True, False)]
    algorithm._collector._count(NextBatch(None, before, {}, 0, ""))
    state = pickle.loads(pickle.dumps(algorithm.get_state("recent_outcomes")))
    if not kept:
        del state["recent_outcomes"]
    algorithm._collector = make_collector(None, metrics)
    algorithm.set_state(state)
    algorithm._collector._count(NextBatch(None, [outcome("a", True)] * 4, {}, 0, ""))
    algorithm._collector.log_means()
    assert metrics.compile()["env_runners"]["success_rate"] == mean


@pytest.mark.parametrize("num_runners", [1, 3])
@pytest.mark.parametrize("has_worked", [False, True])
def test_an_environment_that_works_nowhere_ends_the_run(num_runners, has_worked):
    """One that a single node cannot play is a matter of that node."""
    error = BrokenEnvironmentError("the environment has failed")
    collector = make_collector(failing(error, num_runners))
    if has_worked:
        collector._count(NextBatch(None, [outcome("a", True)], {}, 0, ""))
    for _ in range(num_runners - 1):
        collector._take_metrics(None, 0.0)
    if has_worked:
        collector._take_metrics(None, 0.0)
    else:
        with pytest.raises(RuntimeError, match=r"^the environment has failed$"):
            collector._take_metrics(None, 0.0)


def test_what_a_callback_raises_ends_the_run_whatever_has_worked():
    collector = make_collector(failing(CallbackError("on_episode_end raised")))
    collector._count(NextBatch(None, [outcome("a", True)], {}, 0, ""))
    with pytest.raises(CallbackError, match=r"^on_episode_end raised$"):
        collector._take_metrics(None, 0.0)


def test_what_else_ends_a_runner_is_kept_for_when_all_have_gone():
    collector = make_collector(failing(RuntimeError("EngineFailedError('killed')")))
    for _ in range(9):
        collector._take_metrics(None, 0.0)
    assert collector._last_failure == "EngineFailedError('killed')"


class Recreated:
    """Env runners of which Ray has restarted one; stands in for its manager, too."""

    def __init__(self):
        self._worker_manager = self
        self.dead = {2}

    def actor_ids(self):
        return [1, 2]

    def healthy_actor_ids(self):
        return [*{1, 2} - self.dead]

    def probe_unhealthy_actors(self, **_):
        restored, self.dead = [*self.dead], set()
        return restored

    def foreach_env_runner(self, *args, **kwargs):
        return []

    foreach_env_runner_async_fetch_ready = foreach_env_runner

    def num_remote_env_runners(self):
        return 2


def test_callbacks_hear_once_of_each_env_runner_that_is_back(algorithm, monkeypatch):
    heard = []

    class Listener(RLlibCallback):
        def on_env_runners_recreated(self, **kwargs):
            heard.append(kwargs)

    monkeypatch.setattr(group_collector, "ray", SimpleNamespace(get=lambda _: None))
    lose_runner = SimpleNamespace(remote=lambda runner: None)
    coordinator = SimpleNamespace(lose_runner=lose_runner)
    algorithm.callbacks = [Listener()]
    algorithm.env_runner_group = runners = Recreated()
    algorithm._coordination = SimpleNamespace(coordinator=coordinator)
    algorithm._collector = collector = make_collector(
        runners, on_recreated=algorithm._env_runners_are_back
    )
    # While an update waits for episodes.
    collector._look_after_runners(coordinator)
    collector._look_after_runners(coordinator)
    (told,) = heard
    assert told["algorithm"] is algorithm
    assert told["env_runner_group"] is runners
    assert told["env_runner_indices"] == [2] and told["is_evaluation"] is False
    # RLlib calls back itself for what this returns.
    runners.dead = {1}
    assert algorithm.restore_env_runners(runners) == [1]
    assert len(heard) == 1


def test_callbacks_hear_of_env_runners_that_an_evaluation_brings_back(
    algorithm, monkeypatch
):
    heard = []
    algorithm.env_runner_group, algorithm._say = Recreated(), lambda text: None
    algorithm._collector = make_collector(Recreated(), on_recreated=heard.append)
    algorithm._coordination = SimpleNamespace(
        ask=lambda *_: None, newest_serial=lambda: 0, coordinator=None
    )
    monkeypatch.setattr(
        async_decoupled_ppo,
        "evaluate_on_runners",
        lambda *args, revive, **kwargs: [revive() for _ in range(3)],
    )
    assert algorithm.evaluate_tasks() == [[2], [], []]
    assert heard == [[2]]


class InProcess:
    """An actor handle on a coordinator of this process."""

    def __init__(self):
        self.coordinator = Coordinator(Dispatcher(4, 2, 2), 2)

    def __getattr__(self, name):
        method = getattr(self.coordinator, name)
        return SimpleNamespace(remote=lambda *args: asyncio.run(method(*args)))


def test_a_coordinator_that_dies_soon_after_a_resume_leaves_the_checkpoints_counts(
    monkeypatch,
):
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    monkeypatch.setattr(coordination, "create_coordinator", lambda _: InProcess())
    before = InProcess()
    ledger = before.coordinator._ledger
    for number in range(2):
        ledger.start(number, 2, "retail")
    ledger.drop(0, "timeout")
    learners = SimpleNamespace(foreach_learner=lambda _: [])
    config = SimpleNamespace(needs_old_logit_actors=False)
    held = coordination.Coordination(config, learners, lambda: [])
    held.set_state(get_coordination_state(before))
    held.replace(ActorDiedError())
    counts = held.coordinator.coordinator._ledger.metrics()
    assert counts["ledger/episodes/started"] == 4
    assert counts["ledger/episodes/dropped_timeout"] == 2
    assert counts["ledger/episodes/dropped_restored"] == 2
