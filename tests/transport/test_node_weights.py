"""Engines of another node hold what the learner published, whatever happens."""

import asyncio
import random

import pytest
import torch

from rllib_llm_async.transport import node_weights
from rllib_llm_async.transport.node_weights import NodeWeights
from rllib_llm_async.transport.shipment import SupersededError
from tests.transport.conftest import Learner, expect_equal

NUM_VERSIONS = 200


class Runner:
    """Reads what it is told to, on the node ``afar``."""

    def __init__(self, node_id="afar"):
        self.weights = NodeWeights(node_id)
        self.reads = asyncio.Event()

    async def install(self, shipment, truth, seconds=0.0):
        async with self.weights.at_hand(shipment) as path:
            self.reads.set()
            expect_equal(path, truth)
            await asyncio.sleep(seconds)
            expect_equal(path, truth)


def run(main):
    return asyncio.run(asyncio.wait_for(main, 300))


def test_bit_equal_at_every_version_with_restarts_and_skipped_versions(
    learner, travelled
):
    """Three runners of one node and one of another; each misses some versions."""
    rng = random.Random(0)
    runners = [Runner(), Runner(), Runner(), Runner("farther")]
    num_installed = num_whole = 0

    async def main():
        nonlocal num_installed, num_whole
        for serial in range(1, NUM_VERSIONS + 1):
            learner.step(1.0 if rng.random() < 0.05 else 1e-6)
            if rng.random() < 0.1:
                learner.stage()  # and superseded
                learner.step()
            shipment = learner.publish(serial)
            if rng.random() < 0.1:
                number = rng.randrange(4)
                if rng.random() < 0.5:
                    runners[number].weights.close()  # or was killed
                runners[number] = Runner(runners[number].weights._node_id)
            chosen = [runner for runner in runners if rng.random() < 0.8]
            truth = learner.truth[serial]
            await asyncio.gather(*(r.install(shipment, truth) for r in chosen))
            num_installed += len(chosen)
            num_whole += travelled.get(shipment.path, 0) // shipment.nbytes

    run(main())
    assert num_installed > 3 * NUM_VERSIONS
    assert 2 < num_whole < NUM_VERSIONS / 2


def test_one_copy_and_one_transfer_for_all_engines_of_a_node(learner, travelled):
    runners = [Runner() for _ in range(4)]

    async def main():
        shipment = learner.publish(1)
        await asyncio.gather(*(r.install(shipment, learner.truth[1]) for r in runners))
        assert travelled == {shipment.path: shipment.nbytes}
        learner.step()
        shipment = learner.publish(2)
        await asyncio.gather(*(r.install(shipment, learner.truth[2]) for r in runners))
        (difference,) = shipment.differences
        assert travelled[difference.path] == difference.nbytes < 0.15 * shipment.nbytes
        assert shipment.path not in travelled

    run(main())


def test_engines_of_the_learners_node_read_its_own_file(learner, travelled):
    runner = Runner("learner")

    async def main():
        shipment = learner.publish(1)
        async with runner.weights.at_hand(shipment) as path:
            assert path.samefile(shipment.path)
        assert not runner.weights.doubt(shipment)

    run(main())
    assert travelled == {}


def test_float32_travels_whole(shared_memory, travelled):
    learner, runner = Learner(torch.float32), Runner()

    async def main():
        for serial in (1, 2, 3):
            learner.step()
            shipment = learner.publish(serial)
            assert shipment.differences == ()
            await runner.install(shipment, learner.truth[serial])
            assert travelled[shipment.path] == shipment.nbytes

    run(main())
    learner.outbox.close()


def test_a_copy_that_was_damaged_is_brought_again(learner, travelled):
    runner = Runner()

    async def main():
        await runner.install(learner.publish(1), learner.truth[1])
        copy = runner.weights._copy._path
        damaged = bytearray(copy.read_bytes())
        damaged[-1] ^= 1
        copy.write_bytes(damaged)
        learner.step()
        shipment = learner.publish(2)
        await runner.install(shipment, learner.truth[2])
        assert travelled[shipment.path] == shipment.nbytes
        # What an engine finds wrong after all; but the whole is not brought twice.
        assert not runner.weights.doubt(shipment)
        learner.step()
        shipment = learner.publish(3)
        await runner.install(shipment, learner.truth[3])
        assert runner.weights.doubt(shipment)
        await runner.install(shipment, learner.truth[3])
        assert travelled[shipment.path] == shipment.nbytes
        assert not runner.weights.doubt(shipment)

    run(main())


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "difference"])
def test_a_runner_that_fails_half_way_leaves_no_version(
    learner, travelled, monkeypatch, whole
):
    first, second = Runner(), Runner()
    read = node_weights._read

    def fail(node_id, path):
        yield next(read(node_id, path))[: 20_000 if whole else None]
        raise OSError

    def apply_half(flat, encoded):
        apply_(flat, encoded)
        flat[-1] += 1
        raise OSError

    apply_ = node_weights.apply_

    async def main():
        await first.install(learner.publish(1), learner.truth[1])
        learner.step(1.0 if whole else 1e-6)
        shipment = learner.publish(2)
        if whole:
            monkeypatch.setattr(node_weights, "_read", fail)
        else:
            monkeypatch.setattr(node_weights, "apply_", apply_half)
        with pytest.raises(OSError):
            await first.install(shipment, learner.truth[2])
        monkeypatch.setattr(node_weights, "_read", read)
        monkeypatch.setattr(node_weights, "apply_", apply_)
        await second.install(shipment, learner.truth[2])

    run(main())


def test_a_version_that_is_gone_is_superseded(learner, travelled):
    runner = Runner()

    async def main():
        old = learner.publish(1)
        await runner.install(old, learner.truth[1])
        for serial in (2, 3):
            learner.step()
            newest = learner.publish(serial)
        with pytest.raises(SupersededError):
            await Runner("learner").install(old, learner.truth[1])
        with pytest.raises(SupersededError):
            await Runner("farther").install(old, learner.truth[1])
        await runner.install(newest, learner.truth[3])
        with pytest.raises(SupersededError):
            await runner.install(old, learner.truth[1])

    run(main())


def test_a_copy_is_not_changed_under_an_engine_that_reads_it(learner, travelled):
    slow, fast = Runner(), Runner()

    async def main():
        first = learner.publish(1)
        reading = asyncio.ensure_future(slow.install(first, learner.truth[1], 0.3))
        await slow.reads.wait()
        learner.step(1.0)
        await fast.install(learner.publish(2), learner.truth[2])
        await reading

    run(main())


def test_the_last_runner_of_a_node_removes_its_copy(learner, travelled, shared_memory):
    runners = [Runner(), Runner()]

    async def main():
        shipment = learner.publish(1)
        for runner in runners:
            await runner.install(shipment, learner.truth[1])

    run(main())
    (folder,) = shared_memory.glob("*_shared_*")
    runners[0].weights.close()
    assert folder.is_dir()
    runners[1].weights.close()
    assert not folder.exists()
