"""The two sides of the transport that a run has chosen, see `settings.transport`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
import torch

from rllib_llm_async.transport.device_outbox import Connect, DeviceOutbox
from rllib_llm_async.transport.device_weights import DeviceWeights
from rllib_llm_async.transport.node_weights import NodeWeights
from rllib_llm_async.transport.outbox import Outbox
from rllib_llm_async.transport.sides import EngineSide, TrainerSide


def trainer_side(
    transport: str, dtype: torch.dtype, node_id: str, fail: Callable[[str], Any]
) -> TrainerSide:
    """For the first learner, in its process.

    Args:
        transport: Name of one.
        dtype: Of matrices, see `travels_in`.
        node_id: Ray's id of this node.
        fail: Called with what no engine can get over.
    """
    if transport == "shared_file":
        return Outbox(dtype, node_id)
    return DeviceOutbox(dtype, _connect(transport), fail)


def engine_side(transport: str, engine: int) -> EngineSide:
    """For an env runner, in its actor.

    Args:
        transport: Name of one.
        engine: Number of the runner.
    """
    context = ray.get_runtime_context()
    if transport == "shared_file":
        return NodeWeights(context.get_node_id())
    return DeviceWeights(transport, engine, context.current_actor)


def _connect(transport: str) -> Connect:
    # These import vLLM, which takes seconds.
    if transport == "nccl":
        from rllib_llm_async.transport import nccl

        return nccl.connect
    from rllib_llm_async.transport import ipc

    return ipc.connect
