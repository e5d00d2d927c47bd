"""Coordinator and episode services together, on one loop."""

import asyncio

import pytest

from tests.coordination.in_process import Loop


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
