"""Follows the storages of what operations return, for as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, memory of tensors is counted as it comes and goes.

    Args:
        but: Tensors whose memory does not count, seen from whatever view.

    Attributes:
        peak: The most bytes that were there at once.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._others = {tensor.untyped_storage()._cdata for tensor in but}
        self._live: dict[int, int] = {}
        self._sum = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live or key in self._others:
            return
        self._live[key] = storage.nbytes()
        self._sum += storage.nbytes()
        self.peak = max(self.peak, self._sum)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._sum -= self._live.pop(key)
