"""What the driver hears of episodes, each once, under the number of its group."""

import numpy as np

from rllib_llm_async.coordination import restored_groups as module
from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.coordination.weight_board import WeightBoard
from tests.coordination.in_process import Loop
from tests.coordination.test_coordinator import run, update


def test_the_driver_hears_of_each_outcome_once():
    async def main():
        loop, keys = Loop(max_staleness=0), []
        await loop.start()
        for version in range(4):
            batch = await update(loop, version)
            keys += [outcome.key for outcome in batch.outcomes]
        await loop.stop()
        assert len(keys) == len(set(keys)) >= 16

    run(main)


def test_episodes_carry_the_number_of_their_group():
    """The ledger and the advantages know them by it; two may share a task."""

    async def main():
        loop = Loop(max_staleness=0, episodes_per_update=8)
        await loop.start()
        for version in range(3):
            for group in (await update(loop, version)).groups:
                for episode in await group.episodes:
                    assert episode.custom_data["group_id"] == group.ticket.number
        await loop.stop()

    run(main)


def test_weights_of_all_versions_within_the_bound_are_there_to_be_taken():
    board = WeightBoard(max_staleness=2)
    for version in range(5):
        board.publish(
            PublishedWeights(
                version, None, None, trainer_weights=version, serial=board.announce()
            )
        )
    taken = board.trainer_weights(0)
    assert [version for _, version, _ in taken] == [2, 3, 4]
    (_, newest, _), *_ = board.trainer_weights(taken[1][0])
    assert newest == 4 and board.trainer_weights(taken[-1][0]) == []


def test_an_episode_with_any_older_token_is_not_of_the_current_version(monkeypatch):
    monkeypatch.setattr(module, "versions_of", lambda record: np.array(record["v"]))
    restored = module.RestoredGroups(version=3)
    ticket = Ticket(5, 0, born=2, num_episodes=3)
    records = [{"v": [3, 3]}, {"v": [2, 3]}, {"v": [2, 2]}]
    restored.add(ticket, records, only_current=True)
    assert restored.records[5] == [records[0], None, None]


def test_what_was_dropped_and_not_told_yet_is_told_after_a_checkpoint():
    async def main():
        loop = Loop(max_staleness=0)
        loop.coordinator._dropped["timeout"] = 3
        state = await loop.coordinator.get_state()
        again = Loop(max_staleness=0)
        again.coordinator._dropped["lost"] = 7  # another life's
        await again.coordinator.set_state(state)
        assert (await again.batch(0.0)).dropped == {"timeout": 3}

    run(main)
