"""vLLM's transport `ipc`: an engine on the learner's own GPU maps its copy.

Nothing moves but handles; the engine reads the learner's memory while it loads.
"""

from __future__ import annotations

import torch
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

from rllib_llm_async.transport.device_outbox import (
    EngineCalls,
    MisplacedError,
    StagedWeights,
)
from rllib_llm_async.transport.devices import device_name
from rllib_llm_async.transport.exchange import Request


def connect(calls: EngineCalls, weights: StagedWeights, request: Request):
    """See `device_outbox.Connect`."""
    check_place(device_name(torch.device("cuda")), request)
    return WeightTransferTrainerFactory.trainer_init(
        IPCTrainerInitInfo(rank=0),
        client=calls,
        source=weights,  # type: ignore[arg-type]
    )


def check_place(own: str, request: Request) -> None:
    """Raises `MisplacedError` where an engine's GPU is not the learner's."""
    if request.devices != (own,):
        raise MisplacedError(
            f"weight_transport: ipc needs learner and engines on one GPU, engine "
            f"{request.engine} computes on {', '.join(request.devices)}, the learner "
            f"on {own}: start Ray with that GPU alone, or set weight_transport: "
            "shared_file"
        )
