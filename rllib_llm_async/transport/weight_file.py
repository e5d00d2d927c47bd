"""A version's weights as a safetensors file in shared memory, written where it is read.

Who reads holds a shared lock on the file, who writes an exclusive one, and only whole
versions have a name that readers know: a writer that is killed leaves nothing that
could be taken for a version, and the kernel lets go of its locks.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_llm_async.monitoring.owned_folders import is_at
from rllib_llm_async.transport.shipment import SupersededError
from rllib_llm_async.transport.sides import travels_in

#: As safetensors calls them.
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
#: Where numbers start is a multiple of this.
_ALIGNMENT = 64

Shapes = Mapping[str, torch.Size]


class _Place(NamedTuple):
    """Of a tensor in the file: its dtype, and its bytes from where numbers start."""

    dtype: torch.dtype
    begin: int
    end: int


class WeightFile:
    """Its writer's side: mapped into memory, locked from the beginning.

    Args:
        directory: Where.
        shapes: Of each tensor.
        dtype: Of matrices, see `travels_in`.

    Raises:
        OSError: If there is no room for it, see `allocate`.
    """

    def __init__(self, directory: Path, shapes: Shapes, dtype: torch.dtype) -> None:
        places = _places(shapes, dtype)
        header = _header(shapes, places)
        #: Where the numbers start, in bytes.
        self.start = len(header)
        self.nbytes = self.start + max(place.end for place in places.values())
        descriptor, path = tempfile.mkstemp(prefix="unfinished_", dir=directory)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self.path = Path(path)
        self.lock()
        try:
            allocate(self.path, descriptor, self.nbytes)
        except OSError:
            self.remove()
            raise
        mapped = mmap.mmap(descriptor, self.nbytes)
        mapped[: self.start] = header
        numbers = torch.frombuffer(mapped, dtype=torch.uint8, offset=self.start)
        #: All bits, as numbers of ``dtype``: ``[elements]``.
        self.flat = numbers.view(dtype)
        #: The same memory by tensor.
        self.tensors: dict[str, Tensor] = {
            name: numbers[place.begin : place.end].view(place.dtype).view(shapes[name])
            for name, place in places.items()
        }

    def lock(self) -> bool:
        """Keeps readers away; False if somebody reads it."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def take_back(self) -> bool:
        """Takes its name away, to be written over; False if somebody reads it."""
        if not self.lock():
            return False
        self._rename(f"unfinished_{self.path.name}")
        return True

    def show(self, name: str) -> None:
        """Gives it its name and lets readers in."""
        self._rename(name)
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def remove(self) -> None:
        """Its memory is free when the last one who reads it has ended."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _rename(self, name: str) -> None:
        self.path = self.path.rename(self.path.with_name(name))


def allocate(path: Path, descriptor: int, nbytes: int) -> None:
    """Takes the memory of a version's file, which is open as ``descriptor``.

    Memory that is not there would end the process when it is written to.

    Raises:
        OSError: If it is not there: says where, how much is, and what to do.
    """
    try:
        os.posix_fallocate(descriptor, 0, nbytes)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{error.strerror}: a version of the weights takes {nbytes / 1e9:.2f} GB "
            f"at {path}, where {free / 1e9:.2f} GB are free; if this is a container, "
            "start it with a larger --shm-size (in a pod, mount a larger /dev/shm)",
        ) from error


@contextlib.contextmanager
def held(path: Path) -> Iterator[Path]:
    """Keeps a file that was shown as it is.

    Yields:
        Where it is meanwhile for all processes, should it lose its name.

    Raises:
        SupersededError: If it is gone, or about to be.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SupersededError(str(path)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SupersededError(str(path)) from error
        # Renamed under the exclusive lock only: what has its name now keeps it.
        if not is_at(descriptor, path):
            raise SupersededError(str(path))
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _places(shapes: Shapes, dtype: torch.dtype) -> dict[str, _Place]:
    """Wide numbers first: all are aligned then."""
    dtypes = {name: travels_in(shape, dtype) for name, shape in shapes.items()}
    places, end = {}, 0
    for name in sorted(shapes, key=lambda name: -dtypes[name].itemsize):
        begin, end = end, end + math.prod(shapes[name]) * dtypes[name].itemsize
        places[name] = _Place(dtypes[name], begin, end)
    return places


def _header(shapes: Shapes, places: Mapping[str, _Place]) -> bytes:
    """Of a safetensors file, whose format is a length, JSON, and the numbers."""
    entries = {
        name: {
            "dtype": _DTYPES[place.dtype],
            "shape": list(shapes[name]),
            "data_offsets": [place.begin, place.end],
        }
        for name, place in places.items()
    }
    said = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    said += b" " * (-(8 + len(said)) % _ALIGNMENT)
    return len(said).to_bytes(8, "little") + said
