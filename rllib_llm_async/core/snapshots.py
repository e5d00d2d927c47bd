"""Stored training weights of past policy versions.

The newest version is kept whole, every older one as its difference from the next: a
full copy per tensor where most elements changed (float32 weights, adapters), a few
per cent of one where hardly any did (bfloat16 weights at a small learning rate).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async.core.deltas import Delta, apply_delta_, tensor_delta
from rllib_llm_async.core.ewma import NamedTensors
from rllib_llm_async.monitoring.owned_folders import OwnedFolder

#: A version's tensors: whole, or as the difference from the next stored version.
Stored = dict[str, Tensor | Delta]


class MissingSnapshotError(KeyError):
    """A version's weights are not stored (never put, or evicted)."""

    def __str__(self) -> str:
        return str(self.args[0])


class SnapshotStore:
    """Bit-exact named tensors by version, in CPU memory and beyond that on disk.

    Args:
        max_memory_bytes: When the stored versions take more, the oldest ones go to a
            temporary directory; the newest always stays. None keeps all in memory.
    """

    def __init__(self, max_memory_bytes: int | None = None) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._memory: dict[int, Stored] = {}
        self._on_disk: dict[int, Path] = {}
        self._directory: OwnedFolder | None = None

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
            self._memory[newest] = {
                name: _delta_or_whole(tensor, named_parameters[name].detach())
                for name, tensor in self._memory[newest].items()
                if isinstance(tensor, Tensor)
            }
        self._memory[version] = {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in named_parameters.items()
        }
        self._spill()

    @torch.no_grad()
    def get(self, version: int) -> dict[str, Tensor]:
        """Returns CPU tensors of a version, bit for bit as they were put.

        Some may be the stored ones: not to be changed in place.

        Raises:
            MissingSnapshotError: Names the version and those that are held.
        """
        if version not in self.versions:
            raise MissingSnapshotError(
                f"no snapshot of version {version}; held: {self.versions}"
            )
        chain = [v for v in reversed(self.versions) if v >= version]
        tensors: dict[str, Tensor] = {}
        shared = set()  # names whose tensor is the stored one
        for stored_version in chain:
            for name, stored in self._load(stored_version).items():
                if isinstance(stored, Tensor):
                    tensors[name] = stored
                    shared.add(name)
                    continue
                if name in shared:
                    tensors[name] = tensors[name].clone()
                    shared.remove(name)
                apply_delta_(tensors[name], stored)
        return tensors

    @property
    def versions(self) -> list[int]:
        """Stored versions, in ascending order."""
        return sorted({*self._memory, *self._on_disk})

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors in memory."""
        return sum(
            stored.nbytes
            for snapshot in self._memory.values()
            for stored in snapshot.values()
        )

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
        """The versions as they are stored, differences too: a copy in host memory.

        Args:
            whole: Each version's tensors instead of differences.
        """
        read = self.get if whole else self._load
        return {version: _to_plain(read(version)) for version in self.versions}

    def load_state_dict(self, state: Mapping[int, Any]) -> None:
        """Restores what `state_dict` returned, in place of what is held."""
        self.evict_before(self.versions[-1] + 1 if self.versions else 0)
        self._memory = {
            version: _from_plain(plain) for version, plain in sorted(state.items())
        }
        self._spill()

    def _spill(self) -> None:
        if self._max_memory_bytes is None:
            return
        for oldest in sorted(self._memory)[:-1]:
            if self.nbytes <= self._max_memory_bytes:
                return
            if self._directory is None:
                self._directory = OwnedFolder("snapshots")
            path = Path(self._directory.name) / f"{oldest}.pt"
            torch.save(_to_plain(self._memory.pop(oldest)), path)
            self._on_disk[oldest] = path

    def _load(self, version: int) -> Stored:
        if version in self._memory:
            return self._memory[version]
        return _from_plain(torch.load(self._on_disk[version], weights_only=True))


def _delta_or_whole(tensor: Tensor, newer: Tensor) -> Tensor | Delta:
    if (tensor.shape, tensor.dtype) != (newer.shape, newer.dtype):
        return tensor  # of a run that went on in another dtype
    return tensor_delta(of=tensor.to(newer.device), against=newer) or tensor


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
