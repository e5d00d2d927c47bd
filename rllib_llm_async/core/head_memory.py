"""What a head takes for each token, counted rather than reckoned.

Between the projection onto the vocabulary and the logits some models scale them, cap
them or put a tanh over them, and keep further tensors of their size for the backward
pass. Which ones is the model's business; here it is seen from the storages that a pass
makes, on any device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rllib_llm_async.core.live_bytes import LiveBytes

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
    with torch.enable_grad(), LiveBytes() as live:
        total = run(states).sum()
        if total.requires_grad:  # of a constant there is no way back
            torch.autograd.grad(total, states)
    return live.peak
