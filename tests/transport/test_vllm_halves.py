"""What vLLM's own halves are told: as far as that can be seen without a GPU."""

from dataclasses import asdict

import pytest
import torch
from vllm.distributed.weight_transfer.factory import (
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCTrainerWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import (
    NCCLWeightTransferInitInfo,
    worker_init_payload,
)
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLTrainerWeightTransferEngine,
    NCCLWeightTransferUpdateInfo,
)

from rllib_llm_async.transport import ipc, nccl
from rllib_llm_async.transport.device_outbox import MisplacedError, StagedWeights
from rllib_llm_async.transport.exchange import Request

WEIGHTS = {
    "embed": torch.ones(4, 3, dtype=torch.bfloat16),
    "norm": torch.zeros(3, dtype=torch.bfloat16),
}


class Calls:
    """Takes note of what vLLM's trainer half tells an engine."""

    def __init__(self):
        self.told = []

    def init_weight_transfer_engine(self, init_info):
        self.told.append(init_info)

    def start_weight_update(self):
        pass

    def update_weights(self, update_info):
        self.told.append(update_info)

    def finish_weight_update(self, weight_version=None):
        pass


def request(*devices):
    return Request(3, "a", 0, 1, devices)


@pytest.mark.parametrize("name", ["ipc", "nccl"])
def test_vllm_has_both_halves_under_our_name(name):
    assert WeightTransferEngineFactory._registry[name]()
    assert WeightTransferTrainerFactory._registry[name]()


def test_the_group_is_the_learner_and_the_workers_of_one_engine():
    info = nccl.init_info("10.0.0.1", request("GPU-b", "GPU-c"))
    assert (info.rank, info.is_sender, info.world_size) == (0, True, 3)
    # As vLLM's trainer half makes it, over Ray to vLLM's worker half.
    payload = worker_init_payload(
        NCCLWeightTransferInitInfo(
            master_address=info.master_address,
            master_port=info.master_port,
            rank_offset=1,
            world_size=info.world_size,
            packed=info.packed,
            packed_buffer_size_bytes=info.packed_buffer_size_bytes,
            packed_num_buffers=info.packed_num_buffers,
        )
    )
    worker = NCCLWeightTransferInitInfo(**payload)
    assert worker.packed_buffer_size_bytes == nccl.PACKED_BYTES
    assert (worker.master_address, worker.world_size) == ("10.0.0.1", 3)


def test_nccl_names_what_it_sends_and_sends_what_it_names(monkeypatch):
    calls, sent = Calls(), []

    def broadcast(self, source, meta):
        sent.extend(self._checked_iter(source, meta))

    monkeypatch.setattr(NCCLTrainerWeightTransferEngine, "_broadcast", broadcast)
    trainer = NCCLTrainerWeightTransferEngine(
        client=calls, source=StagedWeights(WEIGHTS)
    )
    trainer.send_weights()
    (told,) = calls.told
    info = NCCLWeightTransferUpdateInfo(**told)
    assert info.names == list(WEIGHTS) == [name for name, _ in sent]
    assert info.dtype_names == ["bfloat16", "bfloat16"]
    assert info.shapes == [[4, 3], [3]]
    assert all(tensor is WEIGHTS[name] for name, tensor in sent)


def test_ipc_hands_out_the_learners_own_memory(monkeypatch):
    calls = Calls()
    trainer = IPCTrainerWeightTransferEngine.__new__(IPCTrainerWeightTransferEngine)
    trainer.client, trainer.source = calls, StagedWeights(WEIGHTS)
    trainer.is_sender, trainer.packed, trainer.gpu_uuid = True, False, "GPU-a"
    handles = iter("xy")
    monkeypatch.setattr(
        "vllm.distributed.weight_transfer.ipc_engine.reduce_tensor",
        lambda tensor: (None, (next(handles), tensor.data_ptr())),
    )
    monkeypatch.setattr(trainer, "_post_send_sync", lambda: None)
    trainer.send_weights()
    (told,) = calls.told
    info = IPCWeightTransferUpdateInfo(**told)
    pointers = [WEIGHTS[name].data_ptr() for name in info.names]
    assert [h["GPU-a"] for h in info.ipc_handles] == [*zip("xy", pointers, strict=True)]
    assert asdict(IPCWeightTransferInitInfo(packed=False)) == {"packed": False}


def test_a_gpu_that_both_sides_need_for_themselves_is_named():
    nccl.check_place("GPU-a", request("GPU-b", "GPU-c"))
    with pytest.raises(
        MisplacedError, match=r"^weight_transport: nccl .*engine 3 .*ipc"
    ):
        nccl.check_place("GPU-a", request("GPU-b", "GPU-a"))


@pytest.mark.parametrize("devices", [("GPU-b",), ("GPU-a", "GPU-b"), ("cpu",)])
def test_a_gpu_that_both_sides_have_to_share_is_named(devices):
    ipc.check_place("GPU-a", request("GPU-a"))
    with pytest.raises(
        MisplacedError, match=r"^weight_transport: ipc .*engine 3 .*GPU"
    ):
        ipc.check_place("GPU-a", request(*devices))
