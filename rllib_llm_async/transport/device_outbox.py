"""A learner's side of vLLM's own transports: the newest version, on its own GPU.

The learner waits for one copy of its weights, in the engines' dtype, on the device that
they are on. Engines get it one after the other, each over a connection of its own, by
vLLM's trainer half in a thread beside the learner: one that dies takes nobody with it,
and its successor connects anew. There is one copy: the next version waits for the
engine that is being served, and those still in line take that one instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError
from torch import Tensor

from rllib_llm_async.transport.devices import wait_for
from rllib_llm_async.transport.exchange import Answer, Kind, Request, start_exchange
from rllib_llm_async.transport.sides import Weights, travels_in

logger = logging.getLogger(__name__)


class MisplacedError(Exception):
    """Learner and engine are not where a transport needs them."""


@dataclass(frozen=True)
class DeviceShipment:
    """A version that a learner holds on its GPU; engines ask for it at ``exchange``."""

    serial: int
    exchange: ray.actor.ActorHandle


class StagedWeights:
    """A version, as vLLM's trainer half asks for it (`WeightSource`)."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def metadata(self) -> list[Any]:
        """`ParamMeta` of each tensor."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [
            ParamMeta(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._tensors.items())


class EngineCalls:
    """What vLLM's trainer half calls an engine with (`VLLMWeightSyncClient`).

    The engine begins and ends its update by itself, when it has paused.
    """

    def __init__(self, exchange: ray.actor.ActorHandle) -> None:
        self._exchange = exchange
        #: What is being served.
        self.request: Request | None = None
        #: Called where the engine fails, while vLLM may wait for it on the GPU.
        self.abort: Callable[[], None] = lambda: None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._have(Answer(Kind.CONNECT, init_info))

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._have(Answer(Kind.LOAD, update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass

    def _have(self, answer: Answer) -> None:
        try:
            ray.get(self._exchange.have.remote(self.request, answer))
        except Exception:
            self.abort()
            raise


#: Connects to an engine: gets the calls, the weights, a request; returns vLLM's
#: `TrainerWeightTransferEngine`. Raises `MisplacedError`.
Connect = Callable[[EngineCalls, StagedWeights, Request], Any]


@dataclass
class _Connection:
    life: str
    calls: EngineCalls
    trainer: Any = None


class DeviceOutbox:
    """See `TrainerSide`.

    Args:
        dtype: Of matrices, see `travels_in`.
        connect: How.
        fail: Called with what no engine can get over.
    """

    def __init__(
        self, dtype: torch.dtype, connect: Connect, fail: Callable[[str], Any]
    ) -> None:
        self._dtype = dtype
        self._connect = connect
        self._fail = fail
        self._staged: dict[str, Tensor] = {}
        self._shown_serial = 0
        self._connections: dict[int, _Connection] = {}
        self._free = threading.Lock()
        self._is_wanted = threading.Event()
        self._exchange = start_exchange()
        threading.Thread(
            target=self._serve, name="weights to engines", daemon=True
        ).start()

    def stage(self, weights: Weights) -> None:
        """See `TrainerSide`; waits for an engine that takes the version before."""
        self._is_wanted.set()
        with self._free:
            self._is_wanted.clear()
            self._shown_serial = 0
            for name, tensor in weights():
                if name not in self._staged:
                    self._staged[name] = torch.empty_like(
                        tensor,
                        dtype=travels_in(tensor.shape, self._dtype),
                        requires_grad=False,
                        memory_format=torch.contiguous_format,
                    )
                self._staged[name].copy_(tensor.detach())
            wait_for(self._device())

    @property
    def staged(self) -> dict[str, Tensor]:
        """See `TrainerSide`."""
        return self._staged

    def show(
        self, serial: int, check: Callable[[], None] = lambda: None
    ) -> DeviceShipment:
        """See `TrainerSide`."""
        self._shown_serial = serial
        return DeviceShipment(serial, self._exchange)

    def close(self) -> None:
        """See `TrainerSide`."""
        ray.kill(self._exchange)
        for connection in self._connections.values():
            connection.calls.abort()

    def _device(self) -> torch.device:
        return next(iter(self._staged.values())).device

    # --- In its thread ------------------------------------------------------------

    def _serve(self) -> None:
        with contextlib.suppress(RayActorError):  # closed
            while True:
                request = ray.get(self._exchange.next_request.remote())
                answer = self._served(request)
                ray.get(self._exchange.end.remote(request, answer))

    def _served(self, request: Request) -> Answer:
        """Sends an engine what it asks for, if that is still there."""
        with self._free:
            if self._is_wanted.is_set() or request.serial != self._shown_serial:
                return Answer(Kind.SUPERSEDED)
            try:
                with self._on_device():
                    self._connection(request).trainer.send_weights()
            except Exception as error:
                if isinstance(error, MisplacedError):
                    self._fail(str(error))
                self._disconnect(request.engine)
                logger.warning(
                    "weights did not get to engine %d: %r", request.engine, error
                )
                return Answer(Kind.FAILED, str(error))
        return Answer(Kind.SENT)

    def _on_device(self) -> contextlib.AbstractContextManager[Any]:
        if self._device().type != "cuda":
            return contextlib.nullcontext()
        return torch.cuda.device(self._device())  # of this thread alone

    def _connection(self, request: Request) -> _Connection:
        """That of the engine; another one if it has been started again."""
        known = self._connections.get(request.engine)
        if known is None or known.life != request.life:
            self._disconnect(request.engine)
            known = _Connection(request.life, EngineCalls(self._exchange))
            known.calls.request = request
            known.trainer = self._connect(
                known.calls, StagedWeights(self._staged), request
            )
            known.calls.abort = known.trainer.shutdown
            self._connections[request.engine] = known
        known.calls.request = request
        return known

    def _disconnect(self, engine: int) -> None:
        connection = self._connections.pop(engine, None)
        if connection is not None:
            connection.calls.abort()
