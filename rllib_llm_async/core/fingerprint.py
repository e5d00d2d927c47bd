"""A checksum of weights that does not depend on how tensors are fused or padded.

An inference engine stacks what a checkpoint keeps apart (q, k and v; gate and up;
the experts of a mixture) and pads the vocabulary with zeros. A hash of bytes differs
then; a sum over hashed elements does not, and it adds up over tensors: the
fingerprint of a stack is the sum of the fingerprints of its parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

#: Elements hashed at a time: what fits a core's cache, and what keeps a GPU busy.
_CPU_CHUNK = 1 << 16
_ACCELERATOR_CHUNK = 1 << 24
_UNSIGNED = (1 << 32) - 1
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


class Fingerprint(NamedTuple):
    """Sums modulo 2^32 over a tensor's hashed elements.

    ``elements`` does not change when they change places, as in a transposition;
    ``rows`` weighs each by its place in the last dimension: whole rows alone may move.
    """

    elements: int
    rows: int


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Hashes every bit of a tensor, chunk by chunk, where it lives.

    A single changed element always changes both sums, a swap of two within a row
    changes ``rows`` but for one case in some 2^32. Zeros count nothing; -0.0 is not
    zero, and a NaN equals itself. An element of 64 bits counts as two.

    Args:
        tensor: Any shape and dtype, on any device.
    """
    tensor = tensor.detach()
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() > 1 else 1)
    chunk = _CPU_CHUNK if tensor.device.type == "cpu" else _ACCELERATOR_CHUNK
    columns: Tensor | None = None
    for part in rows.split(max(1, chunk // max(1, rows.shape[1]))):
        integers = part.contiguous().view(_INTEGERS[part.element_size()])
        sums = _mix(integers.to(torch.int32)).sum(0, dtype=torch.int32)
        columns = sums if columns is None else columns.add_(sums)
    if columns is None or not columns.numel():
        return Fingerprint(0, 0)
    # Odd weights: a change of one column alone cannot vanish.
    place = torch.arange(1, len(columns) + 1, dtype=torch.int32, device=tensor.device)
    weighed = columns * _mix(place).bitwise_or_(1)
    return Fingerprint(
        *(int(s.sum(dtype=torch.int64)) & _UNSIGNED for s in (columns, weighed))
    )


def add_fingerprints(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Fingerprint of tensors stacked along any dimension but the last."""
    elements = rows = 0
    for one in fingerprints:
        elements, rows = elements + one.elements, rows + one.rows
    return Fingerprint(elements & _UNSIGNED, rows & _UNSIGNED)


def _mix(integers: Tensor) -> Tensor:
    """An invertible map of int32 to int32, far from linear, that leaves 0 alone.

    The finaliser of MurmurHash3: without it, one weight's step up would hide another's
    step down. The masks turn arithmetic shifts into logical ones.
    """
    mixed = (integers >> 16).bitwise_and_(0xFFFF).bitwise_xor_(integers)
    mixed *= -2048144789
    mixed ^= (mixed >> 13).bitwise_and_(0x7FFFF)
    mixed *= -1028477387
    mixed ^= (mixed >> 16).bitwise_and_(0xFFFF)
    return mixed
