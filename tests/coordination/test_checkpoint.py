"""What a checkpoint keeps of the loop: nothing that was sampled is sampled again."""

import asyncio
import json

import numpy as np
import pytest

from rllib_llm_async.batch import columns
from rllib_llm_async.coordination import coordinator_state, restored_groups
from rllib_llm_async.coordination.restored_groups import RestoredGroups
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.env_runners.replay import record_of
from rllib_llm_async.env_runners.transcript import Transcript
from tests.coordination import in_process
from tests.coordination.in_process import Loop, at_once
from tests.coordination.test_coordinator import run, update


class Users:
    """Answer so many times in all, then never again."""

    def __init__(self, num_answers):
        self.left = num_answers

    async def __call__(self, task):
        if not self.left:
            await asyncio.Event().wait()
        self.left -= 1
        await asyncio.sleep(0)


async def until(is_so):
    while not is_so():
        await asyncio.sleep(0.01)


async def first_life():
    """Two groups of two episodes: one finished, one with both turns of each said."""
    loop = Loop(wait=Users(6))
    await loop.start()
    transcripts = loop.services[0]._player.transcripts
    await until(
        lambda: (
            loop.coordinator._ready
            and sum(len(transcript.turns) for transcript in transcripts.values()) == 8
        )
    )
    return loop


async def end(loop):
    state = await loop.coordinator.get_state()
    await loop.stop()
    return state


async def tokens_of(batch):
    """Of each group by its number, of each episode its turns."""
    return {
        group.ticket.number: [
            [turn.tolist() for turn in episode.actions.data]
            for episode in await group.episodes
        ]
        for group in batch.groups
    }


def counts(loop, unit):
    prefix = f"ledger/{unit}/"
    metrics = loop.coordinator._ledger.metrics()
    assert metrics["ledger/identity_error"] == metrics["ledger/num_late"] == 0
    return {
        key.removeprefix(prefix): count
        for key, count in metrics.items()
        if key.startswith(prefix) and count
    }


class Others:
    """What the second life's engine says, told from the first one's."""

    def __init__(self, loop):
        self.num_turns = 0
        (self._engine,) = loop.engines
        self._generate = self._engine.generate
        self._engine.generate = self

    async def __call__(self, context, on_piece, seed=None, num_routed=0):
        self.num_turns += 1
        self._engine.context = list(context)
        output = await self._generate(context, lambda piece: None, seed)
        output.token_ids[:] = [60, 61]
        on_piece(output)
        return output


def test_finished_and_half_generated_groups_go_on_where_they_stood():
    async def main():
        state = await end(await first_life())
        assert [group.ticket.number for group, _ in state["finished"]] == [0]
        again = Loop()
        others = Others(again)
        await again.coordinator.set_state(state)
        assert counts(again, "episodes") == {"started": 4, "in_flight": 4}
        assert counts(again, "tokens") == {"started": 16, "in_flight": 16}
        await again.start()
        batch = await again.batch()
        # Both turns of all episodes had been said.
        assert await tokens_of(batch) == {n: [[[50, 51]] * 2] * 2 for n in (0, 1)}
        assert others.num_turns == 0 and not batch.dropped
        assert len(batch.outcomes) == 4
        assert all(outcome.episode_return == 1 for outcome in batch.outcomes)
        await again.publish(1)
        # Further groups have other numbers and tasks.
        more = await again.batch()
        assert {g.ticket.number for g in more.groups} == {2, 3}
        tasks = {g.ticket.task for g in (*batch.groups, *more.groups)}
        assert len(tasks) == 4
        await again.stop()
        assert again.failures == []

    run(main)


def test_a_turn_that_was_not_said_is_generated_after_the_ones_that_were():
    async def main():
        loop = Loop(wait=Users(0), group_size=1, episodes_per_update=1)
        await loop.start()
        await until(loop.services[0]._player.transcripts.__len__)
        (transcript,) = loop.services[0]._player.transcripts.values()
        await until(lambda: transcript.turns)
        state = await end(loop)
        again = Loop(group_size=1, episodes_per_update=1)
        others = Others(again)
        await again.coordinator.set_state(state)
        await again.start()
        batch = await again.batch()
        assert await tokens_of(batch) == {0: [[[50, 51], [60, 61]]]}
        assert others.num_turns >= 1
        (episode,) = await batch.groups[0].episodes
        versions = episode.extra_model_outputs["policy_versions"].data
        assert [turn.tolist() for turn in versions] == [[0, 0], [0, 0]]
        await again.stop()

    run(main)


def test_where_the_environment_answers_otherwise_the_episode_starts_anew(monkeypatch):
    async def main():
        state = await end(await first_life())
        other_tokens = {in_process.columns.NEW_TOKENS: [7]}
        monkeypatch.setattr(in_process, "to_tokens", lambda **_: other_tokens)
        again = Loop()
        Others(again)
        await again.coordinator.set_state(state)
        await again.start()
        batch = await again.batch()
        tokens = await tokens_of(batch)
        assert tokens == {0: [[[50, 51]] * 2] * 2, 1: [[[60, 61]] * 2] * 2}
        assert counts(again, "tokens")["dropped_not_replayable"] == 8
        assert not {e for e in counts(again, "episodes") if e.startswith("dropped")}
        await again.stop()

    run(main)


def turns_kept(state):
    """Of each group under way by its number, of each episode how many turns."""
    return {
        ticket["number"]: [len(record["turns"]) for record in records]
        for ticket, records in state["under_way"]
    }


def test_a_checkpoint_soon_after_a_resume_keeps_what_no_runner_has_taken():
    async def main():
        state = await end(await first_life())
        assert turns_kept(state) == {1: [2, 2]}
        again = Loop(capacity=0)
        await again.coordinator.set_state(state)
        await again.start()
        assert turns_kept(await end(again)) == {1: [2, 2]}

    run(main)


def test_a_checkpoint_amid_a_replay_keeps_what_has_not_been_said_again():
    async def main():
        state = await end(await first_life())
        again = Loop(wait=Users(0))  # of two turns the second is never asked for
        await again.coordinator.set_state(state)
        await again.start()
        transcripts = again.services[0]._player.transcripts
        await until(lambda: any(t.turns for t in transcripts.values()))
        assert turns_kept(await end(again))[1] == [2, 2]

    run(main)


def test_a_runner_that_takes_a_group_while_it_is_asked_loses_nothing_of_it(monkeypatch):
    async def main():
        state = await end(await first_life())
        again = Loop(num_runners=0)
        await again.coordinator.set_state(state)

        async def taken(numbers):
            again.coordinator._restored.records.clear()
            return {}

        monkeypatch.setattr(coordinator_state, "ask_for_records", taken)
        assert turns_kept(await end(again)) == {1: [2, 2]}

    run(main)


def test_groups_of_a_runner_that_does_not_answer_start_anew(monkeypatch):
    monkeypatch.setattr(restored_groups, "ANSWER_SECONDS", 0.1)

    async def main():
        loop = await first_life()
        loop.handles[0].is_dead = True
        state = await end(loop)
        again = Loop()
        Others(again)
        await again.coordinator.set_state(state)
        assert counts(again, "tokens")["dropped_restored"] > 0
        assert counts(again, "episodes") == {"started": 4, "in_flight": 4}
        await again.start()
        tokens = await tokens_of(await again.batch())
        assert tokens == {0: [[[50, 51]] * 2] * 2, 1: [[[60, 61]] * 2] * 2}
        await again.stop()

    run(main)


def test_what_is_too_old_for_a_stricter_bound_is_dropped_and_holds_nobody_up():
    async def main():
        loop = await first_life()
        await loop.publish(1)
        state = await end(loop)
        again = Loop(max_staleness=0)
        await again.coordinator.set_state(state)
        await again.start(1)
        batch = await update(again, 1)
        assert batch.dropped == {"stale": 4}
        assert counts(again, "episodes")["dropped_stale"] == 4
        assert {group.ticket.born for group in batch.groups} == {1}
        await again.stop()

    run(main)


def test_a_session_that_ends_before_an_adopted_group_was_given_changes_nothing():
    async def main():
        state = await end(await first_life())
        again = Loop(capacity=0)  # no room: the group waits
        await again.coordinator.set_state(state)
        await again.start()
        await asyncio.sleep(0.1)
        await again.coordinator.lose_runner(0)
        again.add_runner(1, at_once)
        await again.services[1].serve(again.handle, again.handles[1])
        assert len(await tokens_of(await again.batch())) == 2
        await again.stop()

    run(main)


def num_sampled(sampled):
    """Tokens to score, by episode."""
    return {
        int(episode[columns.EPISODE_KEYS][0]): int(episode[columns.LOSS_MASK].sum())
        for episode in sampled
    }


def under_way_in(state):
    """Keys of the episodes, with the tokens that their two turns hold."""
    return {record["key"]: 4 for _, records in state["under_way"] for record in records}


def test_an_interruption_hands_out_what_restored_groups_hold_of_the_version():
    async def main():
        state = await end(await first_life())
        again = Loop()
        await again.coordinator.set_state(state, ["restored"])
        await again.publish(0)
        finished, waiting = await again.coordinator.interrupt(0)
        assert finished == "restored"
        assert num_sampled(waiting) == under_way_in(state)
        assert await again.coordinator.interrupt(1) == []

    run(main)


def test_an_interruption_amid_a_replay_hands_out_what_has_not_been_said_again():
    """Learners score a version once: what is replayed later would be lost."""

    async def main():
        state = await end(await first_life())
        again = Loop(wait=Users(0))  # of two turns the second is never asked for
        await again.coordinator.set_state(state)
        await again.start()
        transcripts = again.services[0]._player.transcripts
        await until(lambda: under_way_in(state).keys() <= transcripts.keys())
        *_, of_runner = await again.coordinator.interrupt(0)
        assert under_way_in(state).items() <= num_sampled(of_runner).items()
        await again.stop()

    run(main)


@pytest.mark.parametrize("only_current, num_kept", [(False, 2), (True, 1)])
def test_without_older_weights_only_episodes_of_the_current_version_go_on(
    only_current, num_kept
):
    async def record(version):
        engine = in_process.Engine()
        engine.version = version
        transcript = Transcript(version)
        transcript.see([1, 2])
        transcript.turns.append(await engine.generate([], transcript.say))
        return record_of(transcript)

    records = [asyncio.run(record(version)) for version in (2, 3)]
    restored = RestoredGroups(version=3)
    ticket = Ticket(5, 0, born=2, num_episodes=2)
    assert restored.add(ticket, records, only_current=only_current) == ticket
    assert restored.num_tokens(ticket) == 2 * num_kept
    (kept,) = restored.take_records([ticket]).values()
    assert sum(record is not None for record in kept) == num_kept
    # Nothing is left of it: it need not be older than the others.
    anew = restored.add(ticket, records[:1], only_current=True)
    assert anew.born == 3
    assert not restored.take_records([anew])


def test_what_is_kept_of_groups_under_way_is_plain():
    async def main():
        state = await end(await first_life())
        del state["finished"], state["outcomes"]
        assert state["under_way"][0][1][0]["turns"][0]["logp"].dtype == np.float32
        json.dumps(state, default=np.ndarray.tolist)  # raises on anything else

    run(main)


def test_episodes_that_come_after_a_restore_are_not_taken_for_those_of_now():
    """A restored coordinator numbers groups like the one before."""

    async def main():
        answers, asked, come = asyncio.Semaphore(1), asyncio.Event(), asyncio.Event()
        loop = Loop(
            wait=lambda task: answers.acquire(),
            group_size=1,
            episodes_per_update=1,
            max_staleness=0,
            capacity=1,
        )
        (service,) = loop.services

        async def hand_out(numbers):
            episodes = [None, *service.hand_out(numbers)]
            asked.set()
            await come.wait()
            return episodes

        loop.handles[0]._target.hand_out = hand_out
        await loop.start()
        await until(answers.locked)
        state = await loop.coordinator.get_state()
        answers.release()
        await asked.wait()
        await loop.coordinator.set_state(state)
        await loop.publish(0)
        await until(lambda: 0 in service._playing)
        come.set()
        assert (await loop.batch(0.2)).groups is None
        for _ in range(2):
            answers.release()
        assert [g.ticket.number for g in (await loop.batch()).groups] == [0]
        assert counts(loop, "episodes") == {"started": 1, "in_flight": 1}
        await loop.stop()

    run(main)
