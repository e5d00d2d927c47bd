"""Faults injected with real signals into one real loop, one after the other.

Each is survived with learning going on, and what was lost is counted twice: by the
environments, in a book of their own (`faulty_suite`), and by the loop's ledger. With
``-s`` each says how long it took until the next update, for docs/reliability.md.
"""

import os
import signal
import threading
import time

import pytest
import ray

from rllib_llm_async import result_keys
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner
from rllib_llm_async.envs.registry import register_suite
from tests.end_to_end import faulty_suite
from tests.end_to_end.faulty_suite import BEGUN, ENDED, FAULT, Book, FaultySuite

pytestmark = pytest.mark.slow

CONCURRENT = 16
MAX_STALENESS = 2
#: Most episodes that are started and not trained on, at 16 per update.
OUTSTANDING = (MAX_STALENESS + 1) * 16
#: For a loop that a fault has stopped for good; recovery takes a fraction of it.
PATIENCE_SECONDS = 240.0


class Loop:
    """An algorithm, the book of its environments, and which episodes it trained on."""

    def __init__(self, make_config, directory, **training):
        self.book = Book(directory)
        self._num_runner_kills = self._num_coordinator_kills = 0
        self._trained: list[int] = []
        config = (
            make_config(
                **{
                    "max_staleness": MAX_STALENESS,
                    "num_concurrent_episodes": CONCURRENT,
                    "turn_timeout_s": 5.0,
                    # Over all these updates success stays where it was: groups in
                    # which all succeed have no signal, and make no version.
                    "lr": 1e-5,
                    **training,
                }
            )
            .environment(faulty_suite.NAME, env_config={"directory": str(directory)})
            .fault_tolerance(max_num_env_runner_restarts=50)
        )
        self.algorithm = config.build_algo()
        update = self.algorithm._update

        def counting_update(groups):
            for group in groups:
                self._trained += self._keys(group)
            return update(groups)

        self.algorithm._update = counting_update

    @staticmethod
    def _keys(group):
        return [outcome.key for outcome in group.outcomes]

    @property
    def version(self):
        return self.result["learners"]["default_policy"]["policy_version"]

    def train(self, num_updates=1):
        for _ in range(num_updates):
            self.result = self.algorithm.train()

    def runner_pid(self):
        (pid,) = self.on_runner(lambda runner: os.getpid())
        return pid

    def on_runner(self, call):
        return self.algorithm.env_runner_group.foreach_env_runner(
            call, local_env_runner=False
        )

    def kill_runner(self, pid=None):
        self._num_runner_kills += 1
        os.kill(pid or self.runner_pid(), signal.SIGKILL)

    def kill_coordinator(self):
        self._num_coordinator_kills += 1
        os.kill(self.coordinator_pid(), signal.SIGKILL)

    def coordinator_pid(self):
        return self.on_coordinator(lambda coordinator: os.getpid())

    def on_coordinator(self, call):
        return ray.get(
            self.algorithm._coordination.coordinator.__ray_call__.remote(call)
        )

    def restarts(self):
        return self.result["fault_tolerance"]["num_remote_worker_restarts"]

    def train_until(self, has_happened, what):
        """Trains until it has, and three updates more; says how long that took."""
        began, before = time.monotonic(), self.version
        first = None
        while True:
            self.train()
            first = first or time.monotonic() - began
            if has_happened():
                break
            assert time.monotonic() < began + PATIENCE_SECONDS, f"{what}: not survived"
        seconds = time.monotonic() - began
        self.train(3)
        assert self.version > before + 2
        print(f"\n{what}: next update after {first:.1f} s, over after {seconds:.1f} s")
        self.check_accounts()

    def check_accounts(self):
        """The ledger against the book, once no episode is under way."""
        algorithm = self.algorithm
        ray.get(
            algorithm._coordination.coordinator.pause_training_episodes.remote(True)
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.on_coordinator(lambda c: len(c._dispatcher._gate.under_way())):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        metrics = self.on_coordinator(lambda c: c._ledger.metrics())
        ray.get(
            algorithm._coordination.coordinator.pause_training_episodes.remote(False)
        )
        episodes = {
            key.removeprefix("ledger/episodes/"): int(value)
            for key, value in metrics.items()
            if key.startswith("ledger/episodes/")
        }
        dropped = {k: n for k, n in episodes.items() if k.startswith("dropped_") and n}
        book = self.book.counts()
        print(f"ledger {episodes}; book {dict(book)}, trained {len(self._trained)}")
        assert metrics[result_keys.LEDGER_IDENTITY_ERROR] == 0
        assert len(set(self._trained)) == len(self._trained)
        assert episodes["trained"] + episodes["masked"] <= len(self._trained)
        # A try that a fault ended was begun again; what else began and was not trained
        # on is in the queue or gone.
        not_trained = book[BEGUN] - book[FAULT] - len(self._trained)
        told = sum(dropped.values()) + episodes["in_flight"]
        # The ledger counts from the order on: a killed runner may not have begun it.
        # The successor of a dead coordinator knows what was so after the last update.
        unknown = OUTSTANDING * self._num_coordinator_kills
        not_begun = CONCURRENT * self._num_runner_kills
        print(f"ledger - book: {told - not_trained}")
        assert -unknown <= told - not_trained <= not_begun + unknown
        assert book[ENDED] >= len(self._trained)
        return dropped


@pytest.fixture(scope="module")
def loop(ray_cluster, make_config, tmp_path_factory):
    register_suite(faulty_suite.NAME, FaultySuite)
    loop = Loop(make_config, tmp_path_factory.mktemp("book"))
    try:
        loop.train(2)
        yield loop
    finally:
        loop.algorithm.stop()


def test_the_coordinator_is_killed_while_episodes_are_awaited(loop):
    pid, runner = loop.coordinator_pid(), loop.runner_pid()
    loop.kill_coordinator()
    loop.train_until(lambda: loop.coordinator_pid() != pid, "coordinator, waiting")
    assert loop.runner_pid() == runner  # its engine may have been installing weights


def test_a_reward_is_no_number(loop):
    loop.book.order(faulty_suite.NAN)
    before = loop.book.counts()[FAULT]
    loop.train_until(lambda: loop.book.counts()[FAULT] > before, "NaN reward")


def test_an_environment_never_answers(loop):
    loop.book.order(faulty_suite.HANG)
    before = loop.book.counts()[FAULT]
    loop.train_until(lambda: loop.book.counts()[FAULT] > before, "hanging env")


def test_get_module_does_no_harm(loop):
    assert loop.algorithm.get_module() is not None
    loop.train(1)


def test_the_coordinator_is_killed_during_an_update(loop):
    pid = loop.coordinator_pid()
    update = loop.algorithm._update

    def killing_update(groups):
        loop.algorithm._update = update
        loop.kill_coordinator()
        return update(groups)

    loop.algorithm._update = killing_update
    before = loop.version
    loop.train()
    assert loop.version in (before, before + 1)  # of one update, not a mean of two
    assert loop.result["ledger/identity_error"] == 0
    loop.train_until(lambda: loop.coordinator_pid() != pid, "coordinator, update")


def test_the_coordinator_is_killed_during_an_evaluation(loop):
    pid = loop.coordinator_pid()
    threading.Timer(0.5, loop.kill_coordinator).start()
    evaluation = loop.algorithm.evaluate_tasks(num_trials=4, num_tasks=32)
    assert evaluation["env_runners"]["num_episodes"] == 128
    loop.train_until(lambda: loop.coordinator_pid() != pid, "coordinator, evaluation")


@pytest.mark.parametrize("when", ["generating", "idle", "finished"])
def test_a_runner_is_killed(loop, when):
    before = loop.restarts()
    if when != "generating":
        # Finished groups wait for their update, and nothing is under way.
        deadline = time.monotonic() + 30
        while (
            loop.on_coordinator(lambda c: len(c._dispatcher._gate.under_way()))
            and time.monotonic() < deadline
        ):
            time.sleep(0.2)
    if when == "idle":
        ray.get(
            loop.algorithm._coordination.coordinator.pause_training_episodes.remote(
                True
            )
        )
    loop.kill_runner()
    if when == "idle":
        ray.get(
            loop.algorithm._coordination.coordinator.pause_training_episodes.remote(
                False
            )
        )
    loop.train_until(lambda: loop.restarts() > before, f"runner, {when}")


def test_a_runner_is_killed_during_an_evaluation(loop):
    before, pid = loop.restarts(), loop.runner_pid()
    threading.Timer(0.5, lambda: loop.kill_runner(pid)).start()
    began = time.monotonic()
    evaluation = loop.algorithm.evaluate_tasks(num_trials=4, num_tasks=32)
    print(f"\nevaluation took {time.monotonic() - began:.1f} s")
    assert evaluation["env_runners"]["num_episodes"] == 128
    loop.train_until(lambda: loop.restarts() > before, "runner, evaluation")


def test_weights_that_do_not_arrive(loop):
    before, pid = loop.restarts(), loop.runner_pid()

    def mismatch(runner: LLMEnvRunner):
        runner.engine._weights.arrival_check.wrong_numerics = lambda *_: "injected"

    loop._num_runner_kills += 1
    loop.on_runner(mismatch)
    loop.train_until(lambda: loop.restarts() > before, "weights do not match")
    assert loop.runner_pid() != pid


def test_a_runner_is_stopped_for_longer_than_it_may_be_silent(loop):
    pid = loop.runner_pid()
    session = loop.on_coordinator(lambda c: c._dispatcher._next_session)
    loop._num_runner_kills += 1
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(90, lambda: os.kill(pid, signal.SIGCONT)).start()
    loop.train_until(
        lambda: loop.on_coordinator(lambda c: c._dispatcher._next_session) > session,
        "runner stopped for 90 s",
    )
    assert loop.runner_pid() == pid


def test_a_restore_under_episodes_that_wait_for_admission(
    loop, make_config, tmp_path_factory
):
    """Synchronous, with more places than an update needs: some wait all the time."""
    directory = tmp_path_factory.mktemp("synchronous")
    synchronous = Loop(
        make_config, directory, max_staleness=0, num_concurrent_episodes=32
    )
    try:
        synchronous.train()
        checkpoint = synchronous.algorithm.save_to_path(str(directory / "checkpoint"))
        synchronous.train(2)
        began = time.monotonic()
        synchronous.algorithm.restore_from_path(checkpoint)
        synchronous.train()
        print(f"\nrestore: next update after {time.monotonic() - began:.1f} s")
        assert synchronous.version == 1
        synchronous.train(2)
        assert synchronous.version == 3
        assert synchronous.result["ledger/identity_error"] == 0
    finally:
        synchronous.algorithm.stop()
