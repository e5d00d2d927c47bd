"""A runner's side of vLLM's own transports: asks the learner, and does what it says."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from rllib_llm_async.transport.device_outbox import DeviceShipment
from rllib_llm_async.transport.exchange import Answer, Kind, Request
from rllib_llm_async.transport.shipment import SupersededError


class WeightsNotSentError(RuntimeError):
    """The learner could not send an engine what it had asked for."""


@dataclass
class Arrived:
    """A publication that the learner is about to send: what vLLM has to be told."""

    serial: int
    update_info: dict[str, Any] | None


class DeviceWeights:
    """See `EngineSide`; use from one asyncio loop.

    Args:
        backend: vLLM's name of its worker's half.
        engine: Number of the runner.
        runner: The actor that this is in.
    """

    def __init__(
        self, backend: str, engine: int, runner: ray.actor.ActorHandle | None
    ) -> None:
        self.backend = backend
        self._engine = engine
        self._runner = runner
        self._life = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._exchange: Any = None

    async def get_ready(self, llm: Any) -> None:
        """See `EngineSide`."""
        self._llm = llm
        devices = await llm.collective_rpc("rllib_llm_async_device")
        self._devices = tuple(sorted(devices))

    @contextlib.asynccontextmanager
    async def at_hand(self, shipment: DeviceShipment) -> AsyncIterator[Arrived]:
        """See `EngineSide`; the learner keeps them until `loading` ends, and other
        engines waiting.

        Raises:
            SupersededError: See `EngineSide`.
            WeightsNotSentError: If they cannot be sent.
        """
        self._exchange = shipment.exchange
        try:
            yield Arrived(shipment.serial, await self._ask(shipment.serial))
        finally:
            self._exchange.leave.remote(self._engine)

    @contextlib.asynccontextmanager
    async def loading(self, llm: Any, arrived: Arrived) -> AsyncIterator[None]:
        """See `EngineSide`; a second time, they are sent once more."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        info, arrived.update_info = arrived.update_info, None
        try:
            if info is None:
                info = await self._ask(arrived.serial)
            await llm.update_weights(WeightTransferUpdateRequest(update_info=info))
            yield
            answer: Answer = await self._exchange.done.remote(self._engine)
        except (SupersededError, RayActorError) as error:
            raise WeightsNotSentError("the learner has others, or is gone") from error
        if answer.kind is not Kind.SENT:
            raise WeightsNotSentError(f"{answer.kind.value}: {answer.payload}")

    async def _ask(self, serial: int) -> dict[str, Any]:
        """The argument of vLLM's ``update_weights`` for a publication."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = Request(
            self._engine,
            self._life,
            next(self._numbers),
            serial,
            self._devices,
            self._runner,
        )
        try:
            answer: Answer = await self._exchange.ask.remote(request)
            while answer.kind is Kind.CONNECT:
                await self._llm.init_weight_transfer_engine(
                    WeightTransferInitRequest(init_info=answer.payload)
                )
                answer = await self._exchange.done.remote(self._engine)
        except RayActorError as error:  # another learner, or exchange, is on its way
            raise SupersededError(f"publication {serial}") from error
        if answer.kind is Kind.SUPERSEDED:
            raise SupersededError(f"publication {serial}")
        if answer.kind is not Kind.LOAD:
            raise WeightsNotSentError(f"{answer.kind.value}: {answer.payload}")
        return answer.payload

    def doubt(self, shipment: DeviceShipment) -> bool:
        """See `EngineSide`: they came whole."""
        return False

    def close(self) -> None:
        """See `EngineSide`."""
