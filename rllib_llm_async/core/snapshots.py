"""Stored training weights of past policy versions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class MissingSnapshotError(KeyError):
    """A version's weights are not stored (never put, or evicted)."""

    def __str__(self) -> str:
        return str(self.args[0])


class SnapshotStore:
    """Bit-exact copies of named tensors in CPU memory, by version."""

    def __init__(self) -> None:
        self._snapshots: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def put(self, version: int, named_parameters: Mapping[str, Tensor]) -> None:
        """Stores a copy; a version that is stored already is replaced."""
        self._snapshots[version] = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in named_parameters.items()
        }

    def get(self, version: int) -> dict[str, Tensor]:
        """Returns the tensors of a version, bit for bit as they were put.

        Raises:
            MissingSnapshotError: Names the version and those that are held.
        """
        if version not in self._snapshots:
            raise MissingSnapshotError(
                f"no snapshot of version {version}; held: {self.versions}"
            )
        return self._snapshots[version]

    @property
    def versions(self) -> list[int]:
        """Stored versions, in ascending order."""
        return sorted(self._snapshots)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(
            tensor.nbytes
            for snapshot in self._snapshots.values()
            for tensor in snapshot.values()
        )

    def evict_before(self, version: int) -> None:
        """Drops every version below ``version``."""
        for old in [v for v in self._snapshots if v < version]:
            del self._snapshots[old]
