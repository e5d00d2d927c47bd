"""Versions that come late, or never, between a learner and engines on one loop."""

import asyncio
import random

import pytest

from rllib_llm_async.coordination.messages import PublishedWeights
from rllib_llm_async.coordination.weight_board import WeightBoard
from rllib_llm_async.engine.vllm_engine import WeightMismatchError
from rllib_llm_async.transport.shipment import SupersededError
from tests.coordination.in_process import Loop, Weights

pytestmark = pytest.mark.thorough


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_when_versions_come_late_or_are_given_up(max_staleness, seed):
    """The gate counts from what the learner holds, not from what engines can have."""
    rng = random.Random(seed)

    async def main():
        loop = Loop(max_staleness=max_staleness, num_runners=2)
        await loop.start()
        given_up = False

        async def send(published):
            await asyncio.sleep(rng.random() * 0.05)
            await loop.coordinator.publish([published])

        sending = []
        for version in range(12):
            batch = await loop.batch()
            assert batch.groups, batch
            ages = [version - o.mean_version for g in batch.groups for o in g.outcomes]
            assert min(ages) >= 0 and max(ages) <= max_staleness
            serial = await loop.coordinator.announce(version + 1)
            given_up = not given_up and max_staleness > 0 and rng.random() < 0.5
            if not given_up:
                await asyncio.gather(*sending)  # they come in order
                published = PublishedWeights(
                    version + 1, version + 1, None, serial=serial
                )
                sending = [asyncio.ensure_future(send(published))]
            await loop.coordinator.consumed()
        await asyncio.gather(*sending)
        await loop.stop()
        assert loop.failures == []
        for engine in loop.engines:
            assert engine.installed == sorted(set(engine.installed))

    run(main)


def test_a_version_that_comes_after_it_was_withdrawn_is_not_handed_out():
    """A learner that is restored may still be sending what it held before."""
    board = WeightBoard(max_staleness=1)
    late = PublishedWeights(7, None, None, serial=board.announce())
    board.forget()
    restored = PublishedWeights(5, None, None, serial=board.announce())
    board.publish(late)
    assert board.newer_than(0) is None
    board.publish(restored)
    board.publish(late)
    assert board.newer_than(late.serial) is restored
    assert board.newest_serial == restored.serial


def test_a_driver_that_waits_hears_that_no_weights_come():
    async def main():
        loop = Loop()
        waiting = asyncio.ensure_future(loop.batch(60.0))
        await asyncio.sleep(0.1)
        await loop.coordinator.fail("publishing: no room")
        with pytest.raises(RuntimeError, match="publishing: no room"):
            await waiting

    run(main)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


class Faulty(Weights):
    """Version 1 is gone; version 2 is another one than it says."""

    def __init__(self, can_help):
        self.can_help = can_help
        self.asked_for, self.doubted = [], []

    def at_hand(self, version):
        self.asked_for.append(version)
        if version == 1:
            raise SupersededError
        return super().at_hand(version)

    def doubt(self, version):
        self.doubted.append(version)
        return self.can_help


@pytest.mark.parametrize("can_help", [True, False])
def test_weights_that_are_gone_or_in_doubt(can_help):
    async def main():
        loop = Loop()
        (engine,), (service,) = loop.engines, loop.services
        install, weights = engine.install, Faulty(can_help)
        service._weights = weights

        async def check(version, path, expected):
            if version == 2 and not weights.doubted:
                raise WeightMismatchError
            await install(version, path, expected)

        engine.install = check
        await loop.start()
        await until(lambda: engine.installed == [0])
        await loop.publish(1)
        await until(lambda: 1 in weights.asked_for)
        await loop.publish(2)
        await until(lambda: 2 in engine.installed or loop.failures)
        await loop.publish(3)
        await until(lambda: 3 in engine.installed or loop.failures)
        await loop.stop()
        assert weights.doubted == [2]
        if can_help:
            assert engine.installed == [0, 2, 3] and loop.failures == []
        else:
            assert engine.installed == [0]
            assert [type(f) for f in loop.failures] == [WeightMismatchError]

    run(main)
