"""Weights travel between two nodes of Ray, in buckets, then as differences."""

import pytest
import ray
import torch
from safetensors.torch import load_file

from rllib_llm_async.transport.node_weights import BUCKET_BYTES, NodeWeights
from rllib_llm_async.transport.outbox import Outbox
from rllib_llm_async.transport.shipment import SupersededError

pytestmark = pytest.mark.slow


@ray.remote(num_cpus=0, resources={"afar": 1})
class Runner:
    def __init__(self):
        self._weights = NodeWeights(ray.get_runtime_context().get_node_id())

    async def read(self, shipment):
        async with self._weights.at_hand(shipment) as path:
            return load_file(path)["weight"].float().numpy()


def test_the_whole_and_then_what_changed(nodes):
    nodes.add_node(num_cpus=0, resources={"afar": 2})
    ray.init(nodes.address, log_to_driver=False)
    weight = 0.02 * torch.randn(BUCKET_BYTES // 2 + 1_000_000)
    outbox = Outbox(torch.bfloat16, ray.get_runtime_context().get_node_id())
    runners = [Runner.remote() for _ in range(2)]
    shipments = []
    for serial in range(1, 4):
        outbox.stage(lambda weight=weight: [("weight", weight)])
        shipments.append(outbox.show(serial))
        truth = weight.bfloat16().float().numpy()
        for read in ray.get([r.read.remote(shipments[-1]) for r in runners]):
            assert (read == truth).all()
        weight += 1e-6 * torch.randn_like(weight)
    assert [len(shipment.differences) for shipment in shipments] == [0, 1, 2]
    with pytest.raises(SupersededError):
        ray.get(runners[0].read.remote(shipments[0]))
    outbox.close()
