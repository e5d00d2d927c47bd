"""A real engine loads the learner's own file, or the copy of another node."""

import asyncio

import pytest
import torch

from rllib_llm_async.transport.node_weights import NodeWeights
from rllib_llm_async.transport.outbox import Outbox
from tests.engine.arrivals import Trainer
from tests.engine.engines import small_engine

pytestmark = pytest.mark.usefixtures("real_engines")

NUM_VERSIONS = 4


def test_an_engine_holds_every_version(tmp_path, shared_memory, travelled):
    """Bit by bit: `VLLMEngine.install` compares fingerprints of all parameters."""
    trainer = Trainer(tmp_path, "bfloat16")
    outbox = Outbox(torch.bfloat16, "learner")
    engine = small_engine(dtype="bfloat16")

    async def install(weights, first):
        for serial in range(first, first + NUM_VERSIONS):
            outbox.stage(trainer.policy.inference_weights)
            shipment = outbox.show(serial)
            expected = trainer.expected(trainer.weights())
            async with weights.at_hand(shipment) as path:
                if serial % 2:
                    # The next version is written while this one is being loaded.
                    outbox.stage(trainer.policy.inference_weights)
                await engine.install(serial, path, expected)
            assert engine.version == serial
            trainer.step()
        assert engine.num_weight_mismatches == 0

    async def main():
        await engine.start()
        await install(beside, first=1)
        assert not travelled
        await install(afar, first=1 + NUM_VERSIONS)
        assert travelled

    beside, afar = NodeWeights("learner"), NodeWeights("afar")
    try:
        asyncio.run(main())
    finally:
        engine.shutdown()
        outbox.close()
        beside.close()
        afar.close()
