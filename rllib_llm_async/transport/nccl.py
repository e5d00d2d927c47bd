"""vLLM's transport `nccl`: from the learner's GPU to those of an engine, by broadcast.

Each engine is a group of its own with the learner: workers of one engine take part in
the same broadcast, engines take their turns.
"""

from __future__ import annotations

import ray
import torch
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
from vllm.utils.network_utils import get_open_port

from rllib_llm_async.transport.device_outbox import (
    EngineCalls,
    MisplacedError,
    StagedWeights,
)
from rllib_llm_async.transport.devices import device_name
from rllib_llm_async.transport.exchange import Request

#: What is packed into one broadcast, of which two are under way: on both sides.
PACKED_BYTES = 128 << 20


def connect(calls: EngineCalls, weights: StagedWeights, request: Request):
    """See `device_outbox.Connect`."""
    check_place(device_name(torch.device("cuda")), request)
    return WeightTransferTrainerFactory.trainer_init(
        init_info(ray.util.get_node_ip_address(), request),
        client=calls,
        source=weights,  # type: ignore[arg-type]
    )


def init_info(address: str, request: Request) -> NCCLTrainerInitInfo:
    """The group of the learner, which is rank 0 at ``address``, and an engine."""
    return NCCLTrainerInitInfo(
        rank=0,
        master_address=address,
        master_port=get_open_port(),
        world_size=1 + len(request.devices),
        packed_buffer_size_bytes=PACKED_BYTES,
    )


def check_place(own: str, request: Request) -> None:
    """Raises `MisplacedError` where NCCL would find two ranks on one GPU."""
    if own in request.devices:
        raise MisplacedError(
            f"weight_transport: nccl needs GPUs of their own, engine {request.engine} "
            f"computes on the learner's ({own}): set whole num_gpus_per_learner and "
            "num_gpus_per_env_runner, or weight_transport: ipc"
        )
