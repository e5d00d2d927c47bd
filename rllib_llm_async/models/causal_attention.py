"""Causal attention within sequences, without a mask over pairs of all tokens.

On CUDA in half precision torch's varlen attention does it in one kernel; elsewhere each
sequence goes through SDPA alone.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

#: Queries of a sliding window that share one mask.
_BLOCK = 512
#: FlashAttention has no kernel for larger heads.
_MAX_HEAD_DIM = 256


def fits_varlen(query: Tensor, value: Tensor) -> bool:
    """Whether torch's varlen attention has a kernel for these."""
    size = query.shape[-1]
    return size == value.shape[-1] and has_varlen(
        query.device, compute_dtype(query), size
    )


def has_varlen(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether torch's varlen attention has a kernel for such states."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim <= _MAX_HEAD_DIM
    )


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype in which SDPA would compute, autocast considered."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """As `attend_each_sequence`, all of them in one kernel.

    ``longest`` is the length of the longest sequence.
    """
    from torch.nn.attention.varlen import varlen_attn

    # Autocast does not know this one, and norms hand out float32.
    dtype = compute_dtype(query)
    query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    output = varlen_attn(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        # How many are seen before a token; -1 is all.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


def attend_each_sequence(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: Tensor,
    scale: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention within each sequence of one row.

    Args:
        query: ``[1, heads, tokens, head_dim]``.
        key: ``[1, kv_heads, tokens, head_dim]``, as ``value``.
        value: See ``key``.
        boundaries: int32 ``[sequences + 1]``, from 0 to the number of tokens.
        scale: Factor of the scores; None is 1 / sqrt(head_dim).
        window: Tokens that a token sees, itself among them; None for all.

    Returns:
        ``[1, tokens, heads, head_dim]``.
    """
    lengths = boundaries.diff().tolist()
    sequences = zip(
        query.split(lengths, dim=2),
        key.split(lengths, dim=2),
        value.split(lengths, dim=2),
        strict=True,
    )
    return torch.cat(
        [
            causal_attention(q, k, v, scale, window).transpose(1, 2)
            for q, k, v in sequences
        ],
        dim=1,
    )


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Causal attention of whole sequences ``[rows, heads, length, head_dim]``.

    With a ``window`` as in `attend_each_sequence`; its cost is linear in the length.
    """
    length = query.shape[2]
    if window is None or length <= window:
        return _sdpa(query, key, value, scale, is_causal=True)
    mask = _window_mask(window, query.dtype, query.device)
    outputs = []
    start = 0
    for block in query.split(_BLOCK, dim=2):
        end = start + block.shape[2]
        first = max(0, start - window + 1)
        seen = mask[
            : end - start, first - start + window - 1 : end - start + window - 1
        ]
        outputs.append(
            _sdpa(block, key[:, :, first:end], value[:, :, first:end], scale, mask=seen)
        )
        start = end
    return torch.cat(outputs, dim=2)


@lru_cache(maxsize=4)
def _window_mask(window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to the scores of `_BLOCK` queries and of the keys that they see.

    ``[block, window - 1 + block]``: the first key is the first query's farthest. All
    blocks, layers and passes share it.
    """
    queries = torch.arange(_BLOCK, device=device)[:, None] + window - 1
    distance = queries - torch.arange(window - 1 + _BLOCK, device=device)
    hidden = (distance < 0) | (distance >= window)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(
        hidden, -torch.inf
    )


def forget_masks() -> None:
    """Where tensors are of another kind before and after, such as fake ones."""
    _window_mask.cache_clear()


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
