"""A trainer's weights on their way, all nodes in one process."""

import pytest
import torch
from safetensors.torch import load_file

from rllib_llm_async.monitoring import owned_folders
from rllib_llm_async.transport import node_weights, outbox
from rllib_llm_async.transport.outbox import Outbox
from rllib_llm_async.transport.sides import travels_in

SHAPES = {"embed": (300, 40), "norm": (40,), "down": (40, 170)}


class Learner:
    """Takes steps, and has an `Outbox`.

    Attributes:
        truth: By serial the weights as they were published.
    """

    def __init__(self, dtype=torch.bfloat16):
        generator = self._generator = torch.Generator().manual_seed(0)
        self.dtype = dtype
        self.master = {
            name: 0.02 * torch.randn(shape, generator=generator)
            for name, shape in SHAPES.items()
        }
        self.outbox = Outbox(dtype, "learner")
        self.truth = {}

    def step(self, size=1e-6):
        for tensor in self.master.values():
            tensor += size * torch.randn(tensor.shape, generator=self._generator)

    def stage(self):
        self.outbox.stage(lambda: iter(self.master.items()))

    def publish(self, serial):
        self.stage()
        shipment = self.outbox.show(serial)
        self.truth[serial] = {
            name: tensor.to(travels_in(tensor.shape, self.dtype), copy=True)
            for name, tensor in self.master.items()
        }
        return shipment

    def files(self):
        """Those that hold whole versions."""
        directory = self.outbox._directory
        return [p for p in directory.iterdir() if p.stat().st_size > 20_000]


@pytest.fixture
def shared_memory(tmp_path, monkeypatch):
    for module in (owned_folders, outbox, node_weights):
        monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(node_weights, "POLL_SECONDS", 0.001)
    return tmp_path


@pytest.fixture
def travelled(monkeypatch):
    """Bytes between nodes by file; reading is a call here, not a task of Ray."""
    travelled = {}

    def read(node_id, path):
        for bucket in node_weights.buckets_of(path):
            travelled[path] = travelled.get(path, 0) + len(bucket)
            yield memoryview(bucket)

    monkeypatch.setattr(node_weights, "_read", read)
    return travelled


@pytest.fixture
def learner(shared_memory):
    learner = Learner()
    yield learner
    learner.outbox.close()


def expect_equal(path, truth):
    loaded = load_file(path)
    assert loaded.keys() == truth.keys()
    for name, tensor in truth.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
