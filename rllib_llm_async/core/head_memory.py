"""What a head takes for each token, counted rather than reckoned.

Between the projection onto the vocabulary and the logits some models scale them, cap
them or put a tanh over them, and keep further tensors of their size for the backward
pass. Which ones is the model's business; here it is seen from the storages that a pass
makes, on any device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Of the two passes that are compared.
_TOKENS = (2, 4)


def peak_bytes_per_token(run: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    """Bytes by which each token raises the peak of a pass there and back; at least 1.

    What is made once, such as a weight in another dtype, does not count.

    Args:
        run: From hidden states ``[n, hidden]`` to ``[n]``, differentiable.
        hidden: Of the dtype and on the device of the real ones, ``[any, hidden]``.
    """
    few, more = (_peak_bytes(run, hidden, count) for count in _TOKENS)
    return max(1, (more - few) // (_TOKENS[1] - _TOKENS[0]))


def _peak_bytes(run: Callable[[Tensor], Tensor], hidden: Tensor, count: int) -> int:
    states = hidden.new_zeros(count, hidden.shape[-1], requires_grad=True)
    with torch.enable_grad(), _LiveBytes() as live:
        total = run(states).sum()
        if total.requires_grad:  # of a constant there is no way back
            torch.autograd.grad(total, states)
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of what operations return, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
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
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._sum += storage.nbytes()
        self.peak = max(self.peak, self._sum)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._sum -= self._live.pop(key)
