"""A learner's side of the transport: the newest version, in its node's shared memory.

The learner waits for one copy of its weights into the file that engines read. As long
as all engines are on its node there is only this file: it is written over once they
have loaded it, and a second one is made where one of them still does. With engines on
other nodes there are two in turns, since what travels there is the difference.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from rllib_llm_async.monitoring.owned_folders import SHARED_MEMORY, OwnedFolder
from rllib_llm_async.transport.differences import checksum, encode
from rllib_llm_async.transport.shipment import Difference, Shipment
from rllib_llm_async.transport.weight_file import Shapes, WeightFile

#: Differences are kept for nodes that are some versions behind, as long as they are no
#: larger together, relative to the weights; what is beyond it travels whole.
MAX_DIFFERENCES = 0.2
#: Beside the weights as soon as somebody on another node has read them.
READ_FROM_AFAR = "read_from_afar"


class Outbox:
    """Holds one version that engines can load, and another one while it is written.

    `stage` and `show` take turns; a version that is staged instead of shown takes the
    place of the one staged before.

    Args:
        dtype: Of matrices, see `travels_in`.
        node_id: Ray's id of this node.
    """

    def __init__(self, dtype: torch.dtype, node_id: str) -> None:
        self._dtype = dtype
        self._node_id = node_id
        self._source = uuid.uuid4().hex
        self._folder = OwnedFolder("weights", SHARED_MEMORY)
        self._directory = Path(self._folder.name)
        self._shapes: Shapes | None = None
        self._staged: WeightFile | None = None
        self._shown: WeightFile | None = None
        self._shown_serial = 0
        self._spare: WeightFile | None = None
        self._differences: list[Difference] = []

    def stage(self, weights: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        """Copies a version's weights; when it returns they may change.

        Args:
            weights: Yields them by name, the same names every time; it is called twice
                for the first version.

        Raises:
            OSError: If shared memory has no room for them.
        """
        if self._shapes is None:
            self._shapes = {name: tensor.shape for name, tensor in weights()}
        if self._staged is None:
            self._staged = self._file(self._shapes)
        for name, tensor in weights():
            self._staged.tensors[name].copy_(tensor)

    @property
    def staged(self) -> dict[str, Tensor]:
        """The tensors of the staged version, in shared memory."""
        assert self._staged is not None
        return self._staged.tensors

    def show(self, serial: int, check: Callable[[], None] = lambda: None) -> Shipment:
        """Makes the staged version the one that engines load.

        Args:
            serial: Number of the publication.
            check: Called now and then; what it raises leaves the version staged.
        """
        staged = self._staged
        assert staged is not None
        total = checksum(staged.flat, check)
        self._note_difference(serial, staged, check)
        staged.show(f"{serial}.safetensors")
        self._spare, self._shown, self._staged = self._shown, staged, None
        self._shown_serial = serial
        return Shipment(
            source=self._source,
            serial=serial,
            node_id=self._node_id,
            path=str(staged.path),
            nbytes=staged.nbytes,
            start=staged.start,
            dtype=str(self._dtype).removeprefix("torch."),
            checksum=total,
            differences=tuple(self._differences),
        )

    def close(self) -> None:
        """Removes everything; engines that load a version come to the end of it."""
        self._folder.cleanup()
        self._staged = self._shown = self._spare = None

    def _file(self, shapes: Shapes) -> WeightFile:
        """One to write to that nobody reads."""
        if not (self._directory / READ_FROM_AFAR).exists():
            self._spare, self._shown = self._shown or self._spare, None
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.take_back():
                return spare
            spare.remove()
        return WeightFile(self._directory, shapes, self._dtype)

    def _note_difference(
        self, serial: int, staged: WeightFile, check: Callable[[], None]
    ) -> None:
        """Writes down what changed since the version that is shown, if it is there."""
        if self._shown is None:
            self._forget_differences(0)
            return
        path = self._directory / f"{self._shown_serial}_{serial}.difference"
        max_bytes = staged.flat.nbytes * MAX_DIFFERENCES
        try:
            nbytes = _write(
                path, encode(staged.flat, self._shown.flat, check), max_bytes
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        self._differences.append(
            Difference(self._shown_serial, serial, str(path), nbytes)
        )
        self._forget_differences(max_bytes)

    def _forget_differences(self, max_bytes: float) -> None:
        """All but the newest ones, which may be as large together."""
        while sum(d.nbytes for d in self._differences) > max_bytes:
            Path(self._differences.pop(0).path).unlink()


def _write(path: Path, parts: Iterable[bytes], max_bytes: float) -> int:
    """Bytes written, more than ``max_bytes`` if there would be more."""
    nbytes = 0
    with path.open("wb") as file:
        for part in parts:
            nbytes += len(part)
            if nbytes > max_bytes:
                break
            file.write(part)
    return nbytes
