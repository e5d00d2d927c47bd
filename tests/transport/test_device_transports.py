"""Versions from a learner's device to real engines, without the GPUs.

All is as with `nccl` and `ipc`, but that the learner's half writes a file and tells the
engine's to load that.
"""

import asyncio
import threading

import pytest
import ray
import torch
from safetensors.torch import save_file

from rllib_llm_async.engine.whole_weights import WholeWeights
from rllib_llm_async.transport.device_outbox import DeviceOutbox, MisplacedError
from rllib_llm_async.transport.device_weights import (
    Arrived,
    DeviceWeights,
    WeightsNotSentError,
)
from rllib_llm_async.transport.shipment import SupersededError
from rllib_llm_async.transport.sides import FILE_BACKEND
from tests.engine.arrivals import Trainer
from tests.engine.engines import small_engine

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Learner:
    """A `DeviceOutbox` whose connections write files.

    Attributes:
        connected: What engines have connected, by engine and life.
        goes_on: While it is not set, sending waits.
        begun: Is set once sending has begun.
        breaks: What sending raises.
    """

    def __init__(self, directory, dtype=torch.float32):
        self.directory = directory
        self.connected, self.shut_down, self.failures = [], [], []
        self.goes_on, self.begun = threading.Event(), threading.Event()
        self.goes_on.set()
        self.breaks = None
        self.outbox = DeviceOutbox(dtype, self._connect, self.failures.append)

    def _connect(self, calls, weights, request):
        if "elsewhere" in request.devices:
            raise MisplacedError("the engine is elsewhere")
        self.connected.append((request.engine, request.life))
        return _Sender(self, calls, weights, request)

    def publish(self, serial, weights):
        self.outbox.stage(lambda: iter(weights.items()))
        return self.outbox.show(serial)


class _Sender:
    """Stands in for vLLM's `TrainerWeightTransferEngine`."""

    def __init__(self, learner, calls, weights, request):
        self._learner, self._calls, self._weights = learner, calls, weights
        self._request = request

    def send_weights(self):
        self._learner.begun.set()
        assert self._learner.goes_on.wait(60)
        if self._learner.breaks is not None:
            raise self._learner.breaks
        path = self._learner.directory / "sent.safetensors"
        save_file(dict(self._weights), path)
        names = [meta.name for meta in self._weights.metadata()]
        assert names == [name for name, _ in self._weights]
        self._calls.start_weight_update()
        self._calls.update_weights({"path": str(path)})
        path.unlink()
        self._calls.finish_weight_update()

    def shutdown(self):
        self._learner.shut_down.append(self._request.life)


class LLM:
    """What `DeviceWeights` asks of an `AsyncLLM`."""

    def __init__(self, device="cpu"):
        self.device = device
        self.loaded = []

    async def collective_rpc(self, method):
        assert method == "rllib_llm_async_device"
        return [self.device]

    async def update_weights(self, request):
        self.loaded.append(request.update_info["path"])


@pytest.fixture
def learner(tmp_path):
    learner = Learner(tmp_path)
    yield learner
    learner.outbox.close()


WEIGHTS = {"a": torch.ones(3)}


async def started(number=0, device="cpu"):
    side = DeviceWeights(FILE_BACKEND, number, None)
    await side.get_ready(LLM(device))
    return side


async def take(side, shipment):
    async with side.at_hand(shipment) as arrived, side.loading(side._llm, arrived):
        pass


def run(main):
    return asyncio.run(asyncio.wait_for(main, 120))


@pytest.mark.slow
def test_an_engine_holds_every_version_and_its_successor_the_newest(
    real_engines, tmp_path
):
    """Bit by bit: `VLLMEngine.install` compares fingerprints of all parameters."""
    trainer, learner = Trainer(tmp_path, "bfloat16"), Learner(tmp_path, torch.bfloat16)

    async def install(serials):
        side = DeviceWeights(FILE_BACKEND, 1, None)
        engine = small_engine(dtype="bfloat16", weights=WholeWeights(side))
        try:
            await engine.start()
            for serial in serials:
                trainer.step()
                weights = dict(trainer.policy.inference_weights())
                shipment = learner.publish(serial, weights)
                expected = trainer.expected(trainer.weights())
                async with side.at_hand(shipment) as arrived:
                    await engine.install(serial, arrived, expected)
                assert engine.version == serial
            assert engine.num_weight_mismatches == 0
            assert len(engine.sync_seconds) == len(serials)
            assert engine.paused_seconds > 0
        finally:
            engine.shutdown()

    async def main():
        await install([1, 2, 3])
        await install([4])

    run(main())
    assert [engine for engine, _ in learner.connected] == [1, 1]
    assert learner.shut_down == [learner.connected[0][1]]
    learner.outbox.close()


def test_a_version_that_is_not_the_newest_is_superseded(learner):
    async def main():
        side = await started()
        old, new = learner.publish(1, WEIGHTS), learner.publish(2, WEIGHTS)
        with pytest.raises(SupersededError):
            await take(side, old)
        await take(side, new)
        assert len(side._llm.loaded) == 1

    run(main())


def test_the_next_version_waits_for_who_is_served_and_goes_before_who_is_not(learner):
    staged = threading.Event()

    def stage():
        learner.outbox.stage(lambda: iter(WEIGHTS.items()))
        staged.set()

    async def main():
        first, second = await started(0), await started(1)
        shipment = learner.publish(1, WEIGHTS)
        learner.goes_on.clear()
        served = asyncio.create_task(take(first, shipment))
        await asyncio.to_thread(learner.begun.wait, 60)
        in_line = asyncio.create_task(take(second, shipment))
        staging = threading.Thread(target=stage)
        staging.start()
        await asyncio.sleep(0.2)
        assert not staged.is_set()
        learner.goes_on.set()
        await served
        with pytest.raises(SupersededError):
            await in_line
        assert await asyncio.to_thread(staged.wait, 60)

    run(main())


def test_an_engine_that_gives_up_keeps_nobody_from_the_weights(learner):
    async def main():
        gone, other = await started(0), await started(1)
        shipment = learner.publish(1, WEIGHTS)
        with pytest.raises(KeyError):
            async with gone.at_hand(shipment):
                raise KeyError  # the engine has died
        await take(other, shipment)
        assert {*learner.shut_down} == {gone._life}
        await take(gone, shipment)  # connects anew
        assert len(learner.connected) == 3

    run(main())


def test_weights_that_did_not_arrive_are_sent_once_more(learner):
    async def main():
        side = await started()
        shipment = learner.publish(1, WEIGHTS)
        async with side.at_hand(shipment) as arrived:
            for _ in range(2):
                async with side.loading(side._llm, arrived):
                    pass
            learner.publish(2, WEIGHTS)
            with pytest.raises(WeightsNotSentError):  # version 2 is not what it loads
                async with side.loading(side._llm, arrived):
                    pass
        assert len(side._llm.loaded) == 2

    run(main())


def test_an_engine_hears_why_the_learner_cannot_send(learner):
    async def main():
        side = await started()
        shipment = learner.publish(1, WEIGHTS)
        learner.breaks = RuntimeError("NCCL error 5")
        with pytest.raises(WeightsNotSentError, match="failed: NCCL error 5"):
            await take(side, shipment)
        learner.breaks = None
        await take(side, shipment)
        assert learner.failures == []  # another engine may have more luck

    run(main())


def test_the_run_ends_where_an_engine_can_never_have_the_weights(learner):
    async def main():
        side = await started(device="elsewhere")
        with pytest.raises(WeightsNotSentError, match="the engine is elsewhere"):
            await take(side, learner.publish(1, WEIGHTS))

    run(main())
    assert learner.failures == ["the engine is elsewhere"]


def test_a_learner_that_is_gone_has_been_followed_by_another(tmp_path):
    learner = Learner(tmp_path)

    async def main():
        side = await started()
        shipment = learner.publish(1, WEIGHTS)
        await take(side, shipment)
        learner.outbox.close()
        with pytest.raises(SupersededError):
            await take(side, shipment)
        with pytest.raises(WeightsNotSentError):
            async with side.loading(side._llm, Arrived(1, None)):
                pass

    run(main())


def test_a_runner_that_is_killed_is_not_waited_for(learner):
    @ray.remote(num_cpus=0)
    class Runner:
        async def hold(self, shipment):
            here = ray.get_runtime_context().current_actor
            side = DeviceWeights(FILE_BACKEND, 0, here)
            side._llm, side._devices = None, ("cpu",)
            async with side.at_hand(shipment):
                await asyncio.sleep(600)

    async def main():
        runner = Runner.remote()
        shipment = learner.publish(1, WEIGHTS)
        runner.hold.remote(shipment)
        await asyncio.to_thread(learner.begun.wait, 60)
        ray.kill(runner)
        await take(await started(1), shipment)

    run(main())
