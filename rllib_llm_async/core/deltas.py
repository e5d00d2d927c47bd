"""Bit-exact differences of tensors, small where few elements changed.

An optimizer step at a small learning rate leaves most bfloat16 weights as they were:
the step is below their resolution. A delta holds the changed elements alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: An index within a block fits 16 bits.
_BLOCK = 1 << 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Delta:
    """Where and to what a tensor has to be set; all tensors on the CPU.

    ``counts`` int32 ``[blocks]``: changed elements per block of 65536 flat elements;
    ``offsets`` int16 ``[changed]``: their index in the block, minus 32768;
    ``values`` ``[changed]``: the elements.
    """

    counts: Tensor
    offsets: Tensor
    values: Tensor

    @property
    def nbytes(self) -> int:
        return self.counts.nbytes + self.offsets.nbytes + self.values.nbytes


def tensor_delta(of: Tensor, against: Tensor) -> Delta | None:
    """What turns ``against`` into ``of``, bit for bit (NaN and -0.0 included).

    Args:
        of: Any tensor.
        against: Same shape, dtype and device.

    Returns:
        None if a full copy of ``of`` is smaller.
    """
    # Compared as integers: NaN equals itself, and -0.0 differs from 0.0.
    changed = (bits(of) != bits(against)).nonzero().squeeze(1)
    num_blocks = -(-of.numel() // _BLOCK)
    nbytes = num_blocks * 4 + len(changed) * (2 + of.element_size())
    if nbytes >= of.nbytes:
        return None
    return Delta(
        counts=torch.bincount(changed // _BLOCK, minlength=num_blocks)
        .to(torch.int32)
        .cpu(),
        offsets=(changed % _BLOCK - _BLOCK // 2).to(torch.int16).cpu(),
        values=of.flatten()[changed].cpu(),
    )


def apply_delta_(tensor: Tensor, delta: Delta) -> None:
    """Turns a contiguous tensor, in place, into the one the delta was made of."""
    counts, offsets, values = (
        part.to(tensor.device) for part in (delta.counts, delta.offsets, delta.values)
    )
    middles = torch.arange(len(counts), device=tensor.device) * _BLOCK + _BLOCK // 2
    index = middles.repeat_interleave(counts, output_size=len(values)).add_(offsets)
    # Each element once: nothing depends on the order of the writes.
    tensor.view(-1).index_put_((index,), values)


def bits(tensor: Tensor) -> Tensor:
    """The flat elements as integers of the same width."""
    return tensor.contiguous().view(-1).view(_BITS[tensor.element_size()])
