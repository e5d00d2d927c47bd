"""Stored training weights of past policy versions.

The newest version is kept whole, every older one as its difference from the next: a
full copy per tensor where most elements changed (float32 weights, adapters), a few
per cent of one where hardly any did (bfloat16 weights at a small learning rate). A
version that memory has no room for is a file of whole tensors, read without any other.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async.core.deltas import Delta, apply_delta_, tensor_delta
from rllib_llm_async.core.ewma import NamedTensors

#: A version's tensors: whole, or as the difference from the next stored version.
Stored = Mapping[str, Tensor | Delta]


class MissingSnapshotError(KeyError):
    """A version's weights are not stored (never put, or evicted)."""

    def __str__(self) -> str:
        return str(self.args[0])


class SnapshotStore:
    """Bit-exact named tensors by version, in CPU memory and beyond that on disk.

    Args:
        max_memory_bytes: When the stored versions take more, the oldest ones go to
            files; the newest always stays. None keeps all in memory.
        directory: Where the files go, no other store's; None makes a temporary one.
    """

    def __init__(
        self,
        max_memory_bytes: int | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        # Those on disk are older than all in memory.
        self._memory: dict[int, Stored] = {}
        self._on_disk: dict[int, Path] = {}

    @torch.no_grad()
    def put(self, version: int, named_parameters: NamedTensors) -> None:
        """Stores a copy of the newest version.

        Args:
            version: Above all that are stored.
            named_parameters: A mapping, or what `nn.Module.named_parameters` returns.

        Raises:
            ValueError: If a version as new or newer is stored, or its names differ
                from those that are.
        """
        named_parameters = dict(named_parameters)
        newest = self.versions[-1] if self.versions else None
        if newest is not None and version <= newest:
            raise ValueError(f"version {version} is not newer than {newest}")
        if newest is not None:
            odd = sorted(named_parameters.keys() ^ self._memory[newest].keys())
            if odd:
                raise ValueError(f"names differ from version {newest}'s: {odd}")
            # Compared where the weights are: an accelerator does it at its memory's
            # speed, and only what changed travels back.
            self._memory[newest] = _difference(self._memory[newest], named_parameters)
        self._memory[version] = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in named_parameters.items()
        }
        self._spill()

    def get(self, version: int) -> dict[str, Tensor]:
        """Returns CPU tensors of a version, bit for bit as they were put.

        Some may be the stored ones: not to be changed in place.

        Raises:
            MissingSnapshotError: Names the version and those that are held.
        """
        ((_, tensors),) = self.walk([version])
        return tensors

    @torch.no_grad()
    def walk(
        self, versions: Collection[int], device: torch.device | str = "cpu"
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yields versions from the newest to the oldest, bit for bit as they were put.

        Each difference on the way is applied once, on the device. What was yielded
        turns into the next version in place: use it up before going on, and change
        nothing in it.

        Args:
            versions: Which, in any order.
            device: Of the tensors; one copy of the weights is held there.

        Raises:
            MissingSnapshotError: Before the first one; names a version that is not
                held, and those that are.
        """
        for version in versions:
            if version not in self.versions:
                raise MissingSnapshotError(
                    f"no snapshot of version {version}; held: {self.versions}"
                )
        tensors = _WalkingTensors(device)
        for version in sorted(self._memory, reverse=True):
            tensors.step_to(self._memory[version])
            if version in versions:
                yield version, tensors.settled()
        for version in sorted(self._on_disk.keys() & {*versions}, reverse=True):
            tensors.step_to(_read(self._on_disk[version]))
            yield version, tensors.settled()

    @property
    def versions(self) -> list[int]:
        """Stored versions, in ascending order."""
        return sorted({*self._memory, *self._on_disk})

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors in memory."""
        return sum(map(_nbytes, self._memory.values()))

    @property
    def nbytes_on_disk(self) -> int:
        """Bytes of the files of versions that memory had no room for."""
        return sum(path.stat().st_size for path in self._on_disk.values())

    def evict_before(self, version: int) -> None:
        """Drops every version below ``version``."""
        for old in [v for v in self.versions if v < version]:
            self._memory.pop(old, None)
            if old in self._on_disk:
                self._on_disk.pop(old).unlink()

    def state_dict(self, *, whole: bool = False) -> dict[int, Any]:
        """The versions, the newest whole and all others as differences from the next,
        those on disk too: a copy in host memory.

        Args:
            whole: Each version's tensors instead of differences.
        """
        if whole:
            state = {v: _to_plain(tensors) for v, tensors in self.walk(self.versions)}
            return dict(sorted(state.items()))
        state = {version: _to_plain(s) for version, s in self._memory.items()}
        newer = self.get(min(self._memory)) if self._on_disk else {}
        for version in sorted(self._on_disk, reverse=True):
            own = _read(self._on_disk[version])
            state[version] = _to_plain(_difference(own, newer))
            newer = own
        return dict(sorted(state.items()))

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Restores what `state_dict` returned, in place of what is held."""
        self.evict_before(self.versions[-1] + 1 if self.versions else 0)
        self._memory = {
            version: _from_plain(plain) for version, plain in sorted(state.items())
        }
        self._spill()

    def _spill(self) -> None:
        """Writes the oldest versions to disk until the others fit."""
        if self._max_memory_bytes is None:
            return
        leaving, excess = [], self.nbytes - self._max_memory_bytes
        for oldest in sorted(self._memory)[:-1]:
            if excess <= 0:
                break
            leaving.append(oldest)
            excess -= _nbytes(self._memory[oldest])
        if not leaving:
            return
        if self._directory is None:
            self._temporary = tempfile.TemporaryDirectory()
            self._directory = self._temporary.name
        written = {}
        for version, tensors in self.walk(leaving):
            written[version] = Path(self._directory) / f"{version}.pt"
            torch.save(tensors, written[version])
        # All or none: one that stays may be a difference from one that leaves.
        self._on_disk |= written
        for version in written:
            del self._memory[version]


class _WalkingTensors:
    """Tensors on their way from one stored version to an older one.

    Whole tensors that no wanted version needs are passed over without being copied.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = device
        self._tensors: dict[str, Tensor] = {}
        self._is_own: dict[str, bool] = {}  # or is it the store's
        self._due: dict[str, list[Tensor | Delta]] = {}

    def step_to(self, stored: Stored) -> None:
        """Notes what leads to a version, from the next newer one."""
        for name, value in stored.items():
            if isinstance(value, Tensor):
                self._due[name] = [value]
            else:
                self._due.setdefault(name, []).append(value)

    def settled(self) -> dict[str, Tensor]:
        """The tensors of the version that was noted last."""
        for name, steps in self._due.items():
            for step in steps:
                if isinstance(step, Tensor):
                    self._tensors[name] = step.to(self._device)
                    self._is_own[name] = self._tensors[name] is not step
                    continue
                if not self._is_own[name]:
                    self._tensors[name] = self._tensors[name].clone()
                    self._is_own[name] = True
                apply_delta_(self._tensors[name], step)
        self._due.clear()
        return self._tensors


def _difference(older: Stored, newer: Mapping[str, Tensor]) -> Stored:
    """What turns one version into the one before; both are whole."""
    return {
        name: _delta_or_whole(tensor, newer[name].detach())
        for name, tensor in older.items()
        if isinstance(tensor, Tensor)
    }


def _delta_or_whole(tensor: Tensor, newer: Tensor) -> Tensor | Delta:
    if (tensor.shape, tensor.dtype) != (newer.shape, newer.dtype):
        return tensor  # of a run that went on in another dtype
    return tensor_delta(of=tensor.to(newer.device), against=newer) or tensor


def _nbytes(stored: Stored) -> int:
    return sum(value.nbytes for value in stored.values())


def _read(path: Path) -> dict[str, Tensor]:
    """What `SnapshotStore._spill` wrote; the bytes are read where they are used."""
    return torch.load(path, weights_only=True, mmap=True)


#: Tensors and tuples, which a file may hold without code being run on loading.
Plain = dict[str, Tensor | tuple[Tensor, ...]]


def _to_plain(stored: Stored) -> Plain:
    """A copy."""
    return {
        name: value.clone()
        if isinstance(value, Tensor)
        else (value.counts.clone(), value.offsets.clone(), value.values.clone())
        for name, value in stored.items()
    }


def _from_plain(plain: Plain) -> Stored:
    return {
        name: value if isinstance(value, Tensor) else Delta(*value)
        for name, value in plain.items()
    }
