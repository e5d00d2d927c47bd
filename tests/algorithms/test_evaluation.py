"""What an evaluation makes of its episodes, those that failed included."""

import asyncio
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import AsyncDecoupledPPO, AsyncDecoupledPPOConfig
from rllib_llm_async.algorithms.async_decoupled_ppo import evaluation
from rllib_llm_async.algorithms.async_decoupled_ppo.evaluation import (
    NoEpisodesError,
    per_domain,
    summarise,
)
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.episode_outcome import (
    EpisodeOutcome,
    Evaluated,
    mean_results,
)
from rllib_llm_async.env_runners.llm_env_runner import CallbackError, LLMEnvRunner
from rllib_llm_async.envs.agent_env import EpisodeError, TaskRef


def outcome(task, success, domain="airline", **checks):
    return EpisodeOutcome(
        task=TaskRef("suite", task, "test"),
        key=0,
        domain=domain,
        success=success,
        episode_return=float(success),
        num_turns=1,
        num_tokens=2,
        num_versions=1,
        mean_version=3.5,
        num_malformed_tool_calls=0,
        reward_breakdown=checks,
        reason="user_stop",
    )


@pytest.fixture
def algorithm(tmp_path):
    """That an evaluation needs, without actors."""
    algorithm = object.__new__(AsyncDecoupledPPO)
    algorithm.config = AsyncDecoupledPPOConfig()
    algorithm.callbacks, algorithm.metrics = [], MetricsLogger()
    algorithm._storage, algorithm._logdir, algorithm._iteration = None, tmp_path, 3
    algorithm._trained_in = 3
    algorithm._phase = lambda name: nullcontext()
    return algorithm


def test_callbacks_hear_of_an_evaluation(algorithm):
    heard = []

    class Listener(RLlibCallback):
        def on_evaluate_start(self, **kwargs):
            heard.append(("start", kwargs))

        def on_evaluate_end(self, *, evaluation_metrics, **kwargs):
            heard.append(("end", kwargs))
            evaluation_metrics["env_runners"]["of_the_callback"] = 1.0

    algorithm.config.callbacks(Listener)
    algorithm.callbacks = [Listener()]

    def played(**kwargs):
        heard.append(("played", kwargs))
        return {"dialogues": [], "env_runners": {"success_rate": 0.5}}

    algorithm.evaluate_tasks = played
    results = algorithm.evaluate()
    assert [event for event, _ in heard] == ["start", "played", "end"]
    for _, kwargs in heard[::2]:
        assert kwargs["algorithm"] is algorithm
        assert kwargs["metrics_logger"] is algorithm.metrics
    assert results == {"env_runners": {"success_rate": 0.5, "of_the_callback": 1.0}}


def test_means_over_tasks_by_hand():
    outcomes = [outcome("a", s) for s in (True, True, False)]
    outcomes += [outcome("b", s) for s in (False, False)]  # lost a trial
    outcomes += [outcome("c", True, domain="retail") for _ in range(3)]
    rows = per_domain(outcomes, num_trials=3)
    airline = rows["airline"]
    assert airline["avg@3"] == pytest.approx((2 / 3 + 0) / 2)
    for name in ("pass@1", "pass^1"):
        assert airline[name] == pytest.approx(airline["avg@3"])
    assert airline["pass@2"] == pytest.approx((1 + 0) / 2)
    assert airline["pass^2"] == pytest.approx((1 / 3 + 0) / 2)
    # Three trials are left of task a alone.
    assert airline["pass@3"] == 1 and airline["pass^3"] == 0
    # Of 2/3 and 0: |2/3 - 0| / sqrt(2) is their deviation, over sqrt(2) tasks.
    assert airline["avg@3_se"] == pytest.approx((2 / 3) / 2)
    assert "pass@3_se" not in airline and "avg@3_se" not in rows["retail"]
    assert airline["num_tasks"] == 2 and airline["num_episodes"] == 5
    assert rows["retail"]["pass^3"] == 1


def test_partial_credit_by_hand():
    results = mean_results(
        [
            outcome("a", False, state=1.0, policy=0.0),
            outcome("b", True, state=1.0, policy=1.0),
            outcome("c", True, domain="echo"),
        ]
    )
    assert results["rubric_score"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert results["checks/airline/state"] == 1.0
    assert results["checks/airline/policy"] == 0.5
    assert results["success_rate"] == pytest.approx(2 / 3)


def test_nothing_left_is_an_error_that_says_why():
    tasks = [TaskRef("suite", str(number), "test") for number in range(5)]
    with pytest.raises(NoEpisodesError, match="7 episodes were lost to fail") as info:
        summarise([Evaluated(num_env_failures=7)], tasks, num_trials=2, time_limit=1.0)
    assert "3 episodes had not ended" in str(info.value)
    assert info.value.counts == {
        "num_episodes": 0,
        "num_env_failures": 7,
        "num_unfinished_episodes": 3,
    }


def test_an_evaluation_without_episodes_does_not_end_training(algorithm):
    def nothing(**kwargs):
        raise NoEpisodesError("evaluation gave no episode", {"num_episodes": 0})

    algorithm.evaluate_tasks = nothing
    assert algorithm.evaluate() == {"env_runners": {"num_episodes": 0}}


class Player:
    """Fails on tasks named so, and says one word on the others."""

    async def play(self, task, *, keep_messages):
        if task.id == "broken":
            raise EpisodeError("the user does not answer")
        episode = SingleAgentEpisode(len_lookback_buffer=0)
        episode.custom_data[columns.EPISODE_KEY] = 0
        if keep_messages:
            episode.custom_data[columns.EPISODE_MESSAGES] = [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ]
        episode.add_env_reset(np.arange(2))
        episode.add_env_step(
            observation=np.zeros(0, np.int64),
            action=np.array([7, 8]),
            reward=1.0,
            terminated=True,
            extra_model_outputs={
                columns.EPISODE_BEHAVIOR_LOGP: np.array([-0.5, -1e-6], np.float32),
                columns.EPISODE_VERSIONS: np.array([3, 4]),
            },
        )
        return episode, outcome(task.id, True)

    def forget(self, keys):
        pass


@pytest.mark.parametrize("num_dialogues, kept", [(0, 0), (2, 1), (None, 4)])
def test_failing_environments_are_counted(num_dialogues, kept):
    tokenizer = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")

    async def has_installed(serial):
        assert serial == 5

    runner = SimpleNamespace(
        _service=SimpleNamespace(has_installed=has_installed),
        config=SimpleNamespace(num_concurrent_episodes=2),
        _player=Player(),
        _chat_format=SimpleNamespace(tokenizer=tokenizer),
    )
    tasks = [TaskRef("suite", id_, "test") for id_ in ("a", "broken", "b")]
    result = Evaluated()
    asyncio.run(
        LLMEnvRunner._evaluate(runner, result, tasks, 2, num_dialogues, serial=5)
    )
    assert sorted(o.task.id for o in result.outcomes) == ["a", "a", "b", "b"]
    assert result.num_env_failures == 2
    assert len(result.dialogues) == kept
    for dialogue in result.dialogues:
        assert dialogue.policy_version == 4
        assert dialogue.messages[1]["tokens"] == ["<7>", "<8>"]
        assert dialogue.messages[1]["versions"] == [3, 4]
        assert dialogue.messages[1]["logp"] == [-0.5, -0.0]


class FakeRunner:
    """Plays a share in so many polls; may die, or be restarted unnoticed, once."""

    failure = None

    def __init__(self, number, polls=2, fault=None):
        self.worker_index = number
        self.polls = polls
        self.fault = fault
        self.followed = []
        self.left = None

    def connect(self, coordinator):
        self.followed.append(coordinator)

    def begin_evaluation(self, *, tasks, **_):
        self.tasks, self.left = tasks, self.polls

    def assert_healthy(self):
        pass

    def evaluation(self):
        if self.fault == "restarted" and self.left is not None:
            self.fault, self.left = None, None
        if self.left is None:
            return None
        self.left -= 1
        if self.left:
            return 1, None, 0.0
        played, self.left = Evaluated(), None
        played.outcomes += [outcome(task.id, True) for task in self.tasks]
        return len(self.tasks), played, 0.0


class FakeGroup:
    def __init__(self, *runners):
        self.runners = {runner.worker_index: runner for runner in runners}
        self.dead = set()

    def healthy_env_runner_ids(self):
        return [number for number in self.runners if number not in self.dead]

    def foreach_env_runner(self, call, *, remote_worker_ids, **_):
        answers = []
        for number in remote_worker_ids:
            runner = self.runners[number]
            if runner.fault == "dies" and runner.left is not None:
                runner.fault, runner.left = None, None
                self.dead.add(number)
            else:
                answers.append(call(runner))
        return answers

    def revive(self):
        self.dead.clear()


@pytest.mark.parametrize("fault", [None, "dies", "restarted"])
@pytest.mark.parametrize("num_runners", [1, 3])
def test_every_task_is_evaluated_once_whatever_runners_do(
    fault, num_runners, monkeypatch
):
    monkeypatch.setattr(evaluation, "POLL_SECONDS", 0.0)
    tasks = [TaskRef("suite", str(number), "test") for number in range(7)]
    suite = SimpleNamespace(tasks=lambda split: tasks)
    monkeypatch.setattr(evaluation, "make_suite", lambda *_: suite)
    group = FakeGroup(
        FakeRunner(1, fault=fault), *(FakeRunner(n) for n in range(2, num_runners + 1))
    )
    said = []
    result = evaluation.evaluate_on_runners(
        group,
        SimpleNamespace(env="e", env_config={}, evaluation_sample_timeout_s=20),
        split="test",
        num_trials=1,
        num_tasks=None,
        num_dialogues=0,
        serial=3,
        coordinator="the coordinator",
        revive=group.revive,
        say=said.append,
    )
    assert result["env_runners"]["num_episodes"] == 7
    assert result["domains"]["airline"]["num_tasks"] == 7
    assert said[-1] == "evaluation, 7 of 7 episodes"
    # One that was restarted unnoticed follows nobody until it is asked.
    assert all(set(r.followed) == {"the coordinator"} for r in group.runners.values())


def test_what_a_callback_raises_ends_an_evaluation(monkeypatch):
    suite = SimpleNamespace(tasks=lambda split: [TaskRef("suite", "0", "test")])
    monkeypatch.setattr(evaluation, "make_suite", lambda *_: suite)
    runner = FakeRunner(1, polls=100)
    runner.failure = CallbackError("callback on_episode_end raised KeyError('turns')")
    with pytest.raises(CallbackError, match=r"^callback on_episode_end raised"):
        evaluation.evaluate_on_runners(
            FakeGroup(runner),
            SimpleNamespace(env="e", env_config={}, evaluation_sample_timeout_s=20),
            split="test",
            num_trials=1,
            num_tasks=None,
            num_dialogues=0,
            serial=0,
            coordinator=None,
            revive=lambda: None,
            say=lambda text: None,
        )


class OnALoop(LLMEnvRunner):
    """Its evaluation alone: an asyncio loop and a player, no engine."""

    fault = failure = None

    def __init__(self, player, number=1):
        self.worker_index = number
        self.config = SimpleNamespace(num_concurrent_episodes=64)
        self._player, self._evaluation = player, None
        self._service = SimpleNamespace(has_installed=lambda serial: asyncio.sleep(0))
        self._chat_format = SimpleNamespace(tokenizer=SimpleNamespace(decode=str))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def connect(self, coordinator):
        pass

    def assert_healthy(self):
        pass


class Hangs(Player):
    """On some tasks; counts how many of them it waits for."""

    def __init__(self, waited=0.0):
        self.num_hanging = 0
        self._waited = [0.0, waited]

    def seconds_waited(self):
        return self._waited.pop(0) if len(self._waited) > 1 else self._waited[0]

    async def play(self, task, *, keep_messages):
        if task.id.startswith("hangs"):
            self.num_hanging += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.num_hanging -= 1
        return await super().play(task, keep_messages=keep_messages)


def evaluate(monkeypatch, players, tasks, seconds):
    monkeypatch.setattr(evaluation, "POLL_SECONDS", 0.02)
    suite = SimpleNamespace(tasks=lambda split: tasks)
    monkeypatch.setattr(evaluation, "make_suite", lambda *_: suite)
    runners = [OnALoop(player, number) for number, player in enumerate(players, 1)]
    start = time.monotonic()
    result = evaluation.evaluate_on_runners(
        FakeGroup(*runners),
        SimpleNamespace(env="e", env_config={}, evaluation_sample_timeout_s=seconds),
        split="test",
        num_trials=1,
        num_tasks=None,
        num_dialogues=0,
        serial=0,
        coordinator=None,
        revive=lambda: None,
        say=lambda _: None,
    )
    return result["env_runners"], time.monotonic() - start


@pytest.mark.parametrize("num_runners", [1, 2])
def test_episodes_that_hang_cost_themselves_alone(num_runners, monkeypatch, caplog):
    tasks = [TaskRef("suite", name, "test") for name in ("a", "hangs", "b", "broken")]
    players = [Hangs() for _ in range(num_runners)]
    result, _ = evaluate(monkeypatch, players, tasks, seconds=0.5)
    assert result["num_episodes"] == 2 and result["success_rate"] == 1.0
    assert result["num_env_failures"] == result["num_unfinished_episodes"] == 1
    assert "1 of 4 episodes had not ended" in caplog.text
    deadline = time.monotonic() + 5.0  # nothing plays on beside training
    while any(player.num_hanging for player in players):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_time_in_which_something_was_down_is_given_back(monkeypatch):
    tasks = [TaskRef("suite", name, "test") for name in ("a", "hangs")]
    _, seconds = evaluate(monkeypatch, [Hangs(waited=0.8)], tasks, seconds=0.2)
    assert seconds >= 1.0


def test_dialogues_stand_in_the_order_of_tasks_whenever_they_end(monkeypatch):
    class Late(Player):
        async def play(self, task, *, keep_messages):
            await asyncio.sleep(0.3 if task.id == "a" else 0.0)
            episode, _ = await super().play(task, keep_messages=keep_messages)
            return episode, outcome(task.id, True)

    runner = OnALoop(Late())
    result = Evaluated()
    tasks = [TaskRef("suite", name, "test") for name in ("a", "b", "c")]
    asyncio.run(LLMEnvRunner._evaluate(runner, result, tasks, 1, None, serial=0))
    assert [o.task.id for o in result.outcomes] == ["b", "c", "a"]
    assert [dialogue.task for dialogue in result.dialogues] == ["a", "b", "c"]
