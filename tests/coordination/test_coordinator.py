"""Coordinator and episode services together, on one loop."""

import asyncio
import contextlib
from collections import Counter

import pytest

from rllib_llm_async.coordination import coordinator as module
from rllib_llm_async.coordination import dispatcher
from rllib_llm_async.envs.agent_env import EpisodeError
from tests.coordination.in_process import TASKS, Loop, Weights

pytestmark = pytest.mark.thorough


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 30))


async def update(loop, version):
    """One update from ``version`` to the next; returns its batch."""
    batch = await loop.batch()
    assert batch.groups, batch
    await loop.publish(version + 1)
    await loop.coordinator.consumed()
    return batch


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_the_loop_goes_round_and_no_token_is_older_than_the_bound(max_staleness):
    async def main():
        loop = Loop(max_staleness=max_staleness, num_runners=2)
        await loop.start()
        for version in range(6):
            batch = await update(loop, version)
            assert sum(len(group.outcomes) for group in batch.groups) == 4
            for group in batch.groups:
                episodes = await group.episodes
                assert len(episodes) == 2
                ages = [version - outcome.mean_version for outcome in group.outcomes]
                assert min(ages) >= 0 and max(ages) <= max_staleness
        await loop.stop()
        assert loop.failures == []

    run(main)


def test_every_task_comes_once_before_one_comes_again():
    async def main():
        loop = Loop(group_size=1, episodes_per_update=5, max_staleness=0)
        await loop.start()
        tasks = []
        for version in range(3):
            batch = await update(loop, version)
            tasks += [group.outcomes[0].task for group in batch.groups]
        await loop.stop()
        rounds = [tasks[:5], tasks[5:10], tasks[10:]]
        assert all(sorted(r, key=str) == sorted(TASKS, key=str) for r in rounds)
        assert rounds[0] != rounds[1] or rounds[1] != rounds[2]

    run(main)


def test_the_ledger_knows_every_episode_while_the_loop_goes_round():
    async def main():
        loop = Loop(num_runners=2)
        await loop.start()
        for version in range(4):
            batch = await loop.batch()
            await loop.publish(version + 1)
            metrics = (await loop.coordinator.consumed()).accounts
            assert metrics["ledger/identity_error"] == 0
        # Nobody settled them: there is no learner here.
        assert metrics["ledger/episodes/dropped_lost"] == 16
        assert metrics["ledger/episodes/started"] >= 16
        assert len(batch.groups) == 2
        await loop.stop()

    run(main)


class Hangs:
    """The environment of one task never answers, for so many tries."""

    def __init__(self, times):
        self._times = times
        self.reached = asyncio.Event()

    async def __call__(self, task):
        if task == TASKS[0] and self._times:
            self._times -= 1
            self.reached.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


def test_the_driver_hears_which_task_everything_waits_for():
    async def main():
        hangs = Hangs(times=1)
        loop = Loop(wait=hangs, max_staleness=0, episodes_per_update=10)
        await loop.start()
        await hangs.reached.wait()
        batch = await loop.batch(3.0)
        assert batch.groups is None and batch.num_ready == 8
        assert TASKS[0].id in batch.waiting_for and "turn 1" in batch.waiting_for
        assert "runner 0" in batch.waiting_for
        await loop.stop()

    run(main)


def test_a_group_beyond_its_time_is_given_up_and_replaced():
    async def main():
        hangs = Hangs(times=1)
        loop = Loop(wait=hangs, max_staleness=0, ticket_timeout_s=1.0)
        await loop.start()
        dropped = Counter()
        for version in range(3):
            batch = await update(loop, version)
            dropped.update(batch.dropped)
        assert dropped == {"ticket_timeout": 2}
        # Its places are free again, though nothing has answered.
        (service,) = loop.services
        while any(task == TASKS[0] for task, _ in service._under_way.values()):
            await asyncio.sleep(0.05)
        assert not service._player.transcripts.keys() - _keys_of_kept(service)
        await loop.stop()

    run(main)


def _keys_of_kept(service):
    return {p.transcript.key for kept in service._kept.values() for p in kept}


def test_a_group_whose_environment_fails_is_dropped_with_its_reason():
    class Fails:
        async def __call__(self, task):
            if task == TASKS[0]:
                raise EpisodeError("the shop is closed")

    async def main():
        loop = Loop(wait=Fails(), max_staleness=0)
        await loop.start()
        dropped = Counter()
        for version in range(4):
            dropped.update((await update(loop, version)).dropped)
        metrics = (await loop.coordinator.consumed()).accounts
        assert dropped["env_failure"] >= 2
        assert metrics["ledger/episodes/dropped_env_failure"] == dropped["env_failure"]
        assert metrics["ledger/identity_error"] == 0
        for service in loop.services:  # no transcript of a group that has gone
            keys = {
                member.transcript.key
                for members in service._kept.values()
                for member in members
            }
            assert set(service._player.transcripts) <= keys
        await loop.stop()

    run(main)


def test_tokens_of_the_last_try_of_a_group_that_is_given_up_are_counted():
    async def main():
        failures = iter(range(12))

        async def wait(task):
            if next(failures, None) is None:
                await asyncio.Event().wait()
            raise EpisodeError("the shop is closed")

        loop = Loop(wait=wait, max_staleness=0)
        generate = loop.engines[0].generate
        sampled = []

        async def counted(context, on_piece, seed=None, num_routed=0):
            output = await generate(context, on_piece)
            sampled.extend(output.token_ids)
            return output

        loop.engines[0].generate = counted
        await loop.start()
        deadline = asyncio.get_running_loop().time() + 10
        while True:
            accounts = (await loop.coordinator.consumed()).accounts
            started = accounts["ledger/tokens/started"]
            if next(failures, None) is None and started == len(sampled):
                break
            assert asyncio.get_running_loop().time() < deadline, (started, len(sampled))
            await asyncio.sleep(0.1)
        assert accounts["ledger/tokens/dropped_env_failure"] >= 12 * 2
        await loop.stop()

    run(main)


def test_a_silent_runner_loses_its_groups_and_begins_again_when_it_is_back(monkeypatch):
    monkeypatch.setattr(dispatcher, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.1)

    async def main():
        stopped = asyncio.Event()

        async def wait(task):
            await stopped.wait()

        loop = Loop(max_staleness=0)
        loop.add_runner(7, wait)
        await loop.start()
        await update(loop, 0)
        await asyncio.sleep(0.1)
        silent = loop.services[1]
        # As SIGSTOP: it neither reports nor asks.
        silent._session.cancel()
        dropped = Counter()
        for version in range(1, 4):
            dropped.update((await update(loop, version)).dropped)
        assert dropped["lost"] > 0
        stopped.set()
        await silent.serve(loop.handle, loop.handles[1])
        seen = set()
        for version in range(4, 12):
            batch = await update(loop, version)
            seen |= {group.ticket.runner for group in batch.groups}
        assert seen == {0, 7}
        await loop.stop()

    run(main)


def test_a_restore_retires_sessions_and_leaves_no_ticket_behind():
    """An admission that was waited for used to take a ticket that nobody played."""

    async def main():
        loop = Loop(max_staleness=0, capacity=40)
        await loop.start()
        for version in range(3):
            await update(loop, version)
        await loop.coordinator.forget_episodes()
        assert (await loop.batch(0.3)).groups is None  # nothing starts without weights
        await loop.publish(1)
        for version in range(1, 5):
            batch = await update(loop, version)
            assert {o.mean_version for g in batch.groups for o in g.outcomes} == {
                version
            }
        assert loop.engines[0].installed[-4:] == [1, 2, 3, 4]
        await loop.stop()
        assert loop.failures == []

    run(main)


def test_finished_groups_outlive_their_runner():
    async def main():
        loop = Loop(max_staleness=2, num_runners=1)
        await loop.start()
        while loop.coordinator._dispatcher.num_ready < 4:
            await asyncio.sleep(0.01)
        await loop.services[0].stop()
        loop.handles[0].is_dead = True
        await loop.coordinator.lose_runner(0)
        batch = await loop.batch()
        assert [len(await group.episodes) for group in batch.groups] == [2, 2]

    run(main)


def test_a_runner_that_dies_before_it_hands_out_what_it_reported_loses_it():
    async def main():
        loop = Loop(max_staleness=0, num_runners=2)
        loop.handles[1].is_dead = True  # reports, but never hands out
        await loop.start()
        await asyncio.sleep(1.0)
        await loop.services[1].stop()
        await loop.coordinator.lose_runner(1)
        batch = await loop.batch()
        assert {group.ticket.runner for group in batch.groups} == {0}
        await loop.stop()

    run(main)


def test_an_engine_that_fails_makes_its_runner_unhealthy():
    async def main():
        loop = Loop()

        async def generate(context, on_piece, seed=None, num_routed=0):
            raise RuntimeError("the engine has died")

        loop.engines[0].generate = generate
        await loop.start()
        while not loop.failures:
            await asyncio.sleep(0.01)
        assert "the engine has died" in str(loop.failures[0])
        await loop.stop()

    run(main)


def test_groups_that_all_earned_the_same_make_room_for_others():
    async def main():
        loop = Loop(max_staleness=0)
        loop.coordinator._drop_uniform_groups = True
        await loop.start()
        batch = await loop.batch(1.0)
        assert batch.groups is None  # here all episodes earn 1
        assert batch.dropped["uniform"] >= 8
        await loop.stop()

    run(main)


def test_no_group_starts_during_an_evaluation():
    async def main():
        loop = Loop(max_staleness=0)
        await loop.coordinator.pause_training_episodes(True)
        await loop.start()
        assert (await loop.batch(0.5)).num_ready == 0
        await loop.coordinator.pause_training_episodes(False)
        assert (await loop.batch()).groups
        await loop.stop()

    run(main)


def test_learners_score_what_was_sampled_before_the_next_version():
    async def main():
        going = asyncio.Event()

        async def wait(task):
            await going.wait()

        loop = Loop(max_staleness=1, num_runners=2, wait=wait)
        await loop.start()
        await asyncio.sleep(0.3)
        one, two = await asyncio.gather(
            loop.coordinator.interrupt(0), loop.coordinator.interrupt(0)
        )
        assert len(one) == 2 and one == two
        assert all(engine.num_interruptions == 1 for engine in loop.engines)
        scores = await asyncio.gather(
            loop.coordinator.share_scores(0, ["a"], 2),
            loop.coordinator.share_scores(0, ["b"], 2),
        )
        assert scores == [["a", "b"], ["a", "b"]]
        going.set()
        await loop.publish(1)
        assert (await loop.batch()).groups
        await loop.stop()

    run(main)


def test_nothing_is_sampled_under_a_version_that_has_been_scored():
    """Its weights may still be on their way when the learners interrupt it."""

    async def main():
        arrived = asyncio.Event()

        class Slow(Weights):
            @contextlib.asynccontextmanager
            async def at_hand(self, version):
                if version == 1:
                    await arrived.wait()
                yield str(version)

        async def wait(task):
            await asyncio.sleep(0.01)

        loop = Loop(wait=wait)
        loop.services[0]._weights = Slow()
        await loop.start()
        await asyncio.sleep(0.1)
        await loop.publish(1)
        await asyncio.sleep(0.1)
        (sampled,) = await loop.coordinator.interrupt(1)
        assert sampled == []
        arrived.set()
        await asyncio.sleep(0.2)
        assert loop.engines[0].installed == [0]
        await loop.publish(2)
        while loop.engines[0].installed != [0, 2]:
            await asyncio.sleep(0.01)
        await loop.stop()

    run(main)


def test_a_failed_publication_is_forgotten_by_a_restore():
    async def main():
        loop = Loop()
        await loop.coordinator.fail("no space left")
        with pytest.raises(RuntimeError, match="no space left"):
            await loop.batch(0.1)
        await loop.coordinator.forget_episodes()
        assert (await loop.batch(0.1)).groups is None

    run(main)


def test_an_interruption_goes_on_without_a_runner_that_dies():
    async def main():
        loop = Loop(num_runners=2)
        await loop.start()
        await asyncio.sleep(0.2)
        await loop.services[1].stop()
        interruption = asyncio.create_task(loop.coordinator.interrupt(0))
        await asyncio.sleep(0.2)
        assert not interruption.done()
        await loop.coordinator.lose_runner(1)
        assert len(await interruption) == 1
        await loop.stop()

    run(main)


def test_the_position_in_the_order_of_tasks_survives_a_checkpoint():
    async def main():
        loop = Loop(group_size=1, episodes_per_update=2, max_staleness=0, seed=3)
        await loop.start()
        first = [g.outcomes[0].task for g in (await update(loop, 0)).groups]
        state = await loop.coordinator.get_state()
        await loop.stop()
        again = Loop(group_size=1, episodes_per_update=2, max_staleness=0, seed=3)
        await again.coordinator.set_state(state)
        await again.start()
        second = [g.outcomes[0].task for g in (await update(again, 0)).groups]
        assert not set(first) & set(second)
        await again.stop()

    run(main)


def test_an_interruption_does_not_wait_for_a_runner_given_up_as_silent(monkeypatch):
    async def main():
        monkeypatch.setattr(module, "SWEEP_SECONDS", 0.1)
        loop = Loop(num_runners=2)
        await loop.start()
        await asyncio.sleep(0.2)
        await loop.services[1].stop()  # as a process that is stopped
        runners = loop.coordinator._dispatcher._runners
        runners[1].heard_at -= dispatcher.SILENCE_SECONDS
        while 1 in runners:
            await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            assert len(await loop.coordinator.interrupt(0)) == 1
        await loop.stop()

    run(main)


def test_another_coordinator_goes_on_where_one_died():
    async def main():
        loop = Loop(group_size=1, episodes_per_update=2, max_staleness=2, capacity=3)
        await loop.start()
        await update(loop, 0)
        will = (await loop.coordinator.consumed()).will
        before = loop.coordinator._ledger.metrics()
        await loop.stop()
        again = Loop(group_size=1, episodes_per_update=2, max_staleness=2, capacity=3)
        await again.coordinator.set_state(will)
        ledger = again.coordinator._ledger.metrics()
        assert ledger["ledger/episodes/started"] == before["ledger/episodes/started"]
        assert before["ledger/episodes/in_flight"] > 0
        assert ledger["ledger/episodes/in_flight"] == 0
        more_lost = ledger["ledger/episodes/dropped_lost"] - before.get(
            "ledger/episodes/dropped_lost", 0
        )
        assert more_lost == before["ledger/episodes/in_flight"]
        assert ledger["ledger/identity_error"] == 0
        await again.start(version=1)
        batch = await update(again, 1)
        assert batch.dropped["lost"] == more_lost
        assert min(g.ticket.number for g in batch.groups) >= will["next_ticket"]
        await again.stop()

    run(main)


def test_groups_of_tasks_that_are_gone_are_given_up():
    """A run may go on with a suite that has fewer of them."""

    async def main():
        hangs = asyncio.Event()
        loop = Loop(max_staleness=0, wait=lambda task: hangs.wait())
        await loop.start()
        while len(loop.coordinator._dispatcher.under_way()) < 2:
            await asyncio.sleep(0.01)
        state = await loop.coordinator.get_state()
        await loop.stop()
        again = Loop(max_staleness=0)
        again.services[0]._tasks = TASKS[:1]
        await again.coordinator.set_state(state)
        await again.start()
        batch = await again.batch()
        tasks = {outcome.task for group in batch.groups for outcome in group.outcomes}
        assert tasks == {TASKS[0]}
        assert batch.dropped["restored"] == 2  # the group of the other task
        await again.stop()
        assert again.failures == []

    run(main)


def test_a_second_coordinator_waits_for_the_end_of_the_session_before():
    """Two sessions used to begin when a runner was connected twice at such a time."""

    async def main():
        async def wait(task):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.3)  # takes its time to end

        loop = Loop(wait=wait)
        await loop.start()
        await asyncio.sleep(0.2)
        (service,) = loop.services
        await asyncio.gather(
            service.serve(loop.handle, loop.handles[0]),
            service.serve(loop.handle, loop.handles[0]),
        )
        await asyncio.sleep(0.1)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        sessions = [t for t in others if t.get_coro().__name__ == "_serve"]
        assert sessions == [service._session]
        await loop.stop()

    run(main)


def test_a_session_that_ends_lets_an_installation_come_to_its_end():
    """Cut off half-way it left an engine that died at its next step."""

    async def main():
        loop = Loop()
        (engine,) = loop.engines
        install, ended = engine.install, []

        async def slow_install(version, path, expected):
            await asyncio.sleep(0.3)
            await install(version, path, expected)
            ended.append(version)

        engine.install = slow_install
        await loop.start()
        await asyncio.sleep(0.1)
        assert ended == []
        await loop.stop()
        assert ended == [0]

    run(main)
