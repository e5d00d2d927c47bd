"""A runner's side of the transport: the newest version as a file of its own node.

On the learner's node that is the learner's own file. On another one it is a copy that
all runners of the node share: the first that needs a version brings it, while nobody
reads the copy; where it holds a version that the learner knows the difference from,
that is patched in, else the whole is brought. A copy that a runner has left half-way,
or that does not add up, counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rllib_llm_async.monitoring.owned_folders import SHARED_MEMORY, SharedFolder
from rllib_llm_async.transport.differences import apply_, checksum
from rllib_llm_async.transport.outbox import READ_FROM_AFAR
from rllib_llm_async.transport.shipment import Difference, Shipment, SupersededError
from rllib_llm_async.transport.sides import FILE_BACKEND
from rllib_llm_async.transport.weight_file import allocate, held

#: What travels at a time from node to node.
BUCKET_BYTES = 64 << 20
#: How often a runner looks whether the others have read what it has to write over.
POLL_SECONDS = 0.05


class NodeWeights:
    """Use from one asyncio loop.

    Args:
        node_id: Ray's id of this node.
    """

    #: See `EngineSide`.
    backend = FILE_BACKEND

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._copy: NodeCopy | None = None

    async def get_ready(self, llm: Any) -> None:
        """See `EngineSide`; there is nothing to do."""

    @contextlib.asynccontextmanager
    async def at_hand(self, shipment: Shipment) -> AsyncIterator[Path]:
        """Yields a safetensors file with these weights that stays as it is meanwhile.

        Raises:
            SupersededError: If they are gone, since newer ones come.
        """
        if shipment.node_id == self._node_id:
            with held(Path(shipment.path)) as path:
                yield path
            return
        if self._copy is None or self._copy.source != shipment.source:
            self.close()
            self._copy = NodeCopy(shipment.source, self._node_id)
        async with self._copy.at_hand(shipment) as path:
            yield path

    @contextlib.asynccontextmanager
    async def loading(self, llm: Any, arrived: Path) -> AsyncIterator[None]:
        """See `EngineSide`."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await llm.update_weights(
            WeightTransferUpdateRequest(update_info={"path": str(arrived)})
        )
        yield

    def doubt(self, shipment: Shipment) -> bool:
        """Has the whole brought where an engine found other weights than these.

        Returns:
            False if that would be the same: it was the whole already.
        """
        if self._copy is None or shipment.node_id == self._node_id:
            return False
        return self._copy.doubt(shipment.serial)

    def close(self) -> None:
        """Gives up the copy; the last runner of the node removes it."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None


class NodeCopy:
    """The copy of one learner's weights that the runners of another node share.

    Args:
        source: See `Shipment`.
        node_id: Ray's id of this node; two nodes of a test are one machine.
    """

    def __init__(self, source: str, node_id: str) -> None:
        self.source = source
        self._folder = SharedFolder("weights", f"{source}_{node_id}", SHARED_MEMORY)
        directory = Path(self._folder.name)
        self._path = directory / "copy.safetensors"
        self._serial_path = directory / "serial"
        self._brought_whole = 0  # serial

    @contextlib.asynccontextmanager
    async def at_hand(self, shipment: Shipment) -> AsyncIterator[Path]:
        """See `NodeWeights.at_hand`."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not (
                _try_lock(descriptor, fcntl.LOCK_SH)
                and self._serial() == shipment.serial
            ):
                if _try_lock(descriptor, fcntl.LOCK_EX):
                    # The lock must not be lost before.
                    await to_its_end(
                        asyncio.to_thread(self._bring, descriptor, shipment)
                    )
                else:
                    await asyncio.sleep(POLL_SECONDS)
            yield self._path
        finally:
            os.close(descriptor)

    def doubt(self, serial: int) -> bool:
        """See `NodeWeights.doubt`."""
        if self._brought_whole == serial:
            return False
        self._forget()
        return True

    def _forget(self) -> None:
        self._serial_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the copy if no other runner has it."""
        self._folder.cleanup()

    def _serial(self) -> int:
        """Of what the copy holds; 0: of nothing that is whole."""
        try:
            return int(self._serial_path.read_text() or 0)
        except FileNotFoundError:
            return 0

    def _bring(self, descriptor: int, shipment: Shipment) -> None:
        """Makes the copy these weights, under the exclusive lock."""
        serial = self._serial()
        if serial == shipment.serial:
            return
        if serial > shipment.serial:
            raise SupersededError(shipment.path)
        self._forget()
        differences = shipment.since(serial) if serial else None
        if differences is None or not self._patch(shipment, differences):
            self._bring_whole(descriptor, shipment)
            if checksum(self._flat(shipment)) != shipment.checksum:
                raise RuntimeError(f"weights were damaged on their way: {shipment}")
            self._brought_whole = shipment.serial
        self._serial_path.write_text(str(shipment.serial))

    def _patch(self, shipment: Shipment, differences: tuple[Difference, ...]) -> bool:
        """False if that does not give the weights."""
        flat = self._flat(shipment)
        try:
            for difference in differences:
                apply_(flat, _read(shipment.node_id, difference.path))
        except SupersededError:  # an old difference goes before the version does
            return False
        return checksum(flat) == shipment.checksum

    def _bring_whole(self, descriptor: int, shipment: Shipment) -> None:
        allocate(self._path, descriptor, shipment.nbytes)
        offset = 0
        for part in _read(shipment.node_id, shipment.path):
            offset += os.pwrite(descriptor, part, offset)

    def _flat(self, shipment: Shipment) -> torch.Tensor:
        """The copy's numbers, to be changed in place."""
        dtype = getattr(torch, shipment.dtype)
        whole = torch.from_file(
            str(self._path), shared=True, size=shipment.nbytes, dtype=torch.uint8
        )
        return whole[shipment.start :].view(dtype)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(node_id: str, path: str) -> Iterator[memoryview]:
    """Yields the bytes of a file on another node, bucket by bucket.

    Raises:
        SupersededError: If it is gone, or its node.
    """
    buckets = (
        ray.remote(buckets_of)
        .options(
            num_cpus=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            _generator_backpressure_num_objects=2,
        )
        .remote(path)
    )
    try:
        for bucket in buckets:
            yield memoryview(ray.get(bucket))
    except (
        NodeDiedError,
        ObjectLostError,
        TaskUnschedulableError,
        WorkerCrashedError,
    ) as error:
        raise SupersededError(path) from error


def buckets_of(path: str) -> Iterator[np.ndarray]:
    """Yields uint8 buckets of what a learner has put into shared memory on its node.

    The file stays as it is meanwhile: a version that takes longer to travel than an
    update takes arrives all the same.

    Raises:
        SupersededError: If it is gone.
    """
    with held(Path(path)) as kept, kept.open("rb") as file:
        Path(path).with_name(READ_FROM_AFAR).touch()
        while bucket := file.read(BUCKET_BYTES):
            yield np.frombuffer(bucket, np.uint8)


async def to_its_end(work: Coroutine[Any, Any, Any]) -> None:
    """Awaits it; whoever cancels this waits for it as well."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
