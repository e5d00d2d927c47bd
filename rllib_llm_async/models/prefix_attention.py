"""Causal attention where sequences continue prefixes that lie elsewhere in the row.

Softmax over several sets of keys is their softmaxes weighed by their normalisers, as in
FlashAttention (arXiv 2205.14135): each set goes through a kernel without a mask, and
the backward pass of each is exact given the output and the normaliser of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rllib_llm_async.models.causal_attention import compute_dtype
from rllib_llm_async.models.shared_prefixes import PrefixTree


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float | None
) -> Tensor:
    """Attention of each token to those before it in its sequence.

    Args:
        query: ``[1, heads, row, head_dim]``.
        key: ``[1, kv_heads, row, head_dim]``, as ``value``.
        value: See ``key``.
        tree: Of the row.
        scale: Factor of the scores; None is 1 / sqrt(head_dim).

    Returns:
        ``[1, row, heads, head_dim]``.
    """
    # Autocast knows none of the kernels, and norms hand out float32.
    dtype = compute_dtype(query)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    if query.device.type == "cpu":
        states = map(_with_dense_heads, (query, key, value))
        return _BlockAttention.apply(*states, tree, scale).transpose(1, 2)
    return _beside_whole_sequences(query, key, value, tree, scale)


def _beside_whole_sequences(
    query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scale: float | None
) -> Tensor:
    """Each piece beside a copy of the keys of its sequence, in torch's varlen kernel.

    It is causal with the last query beside the last key, as FlashAttention is.
    """
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    output = varlen_attn(
        query,
        key.index_select(0, tree.paths),
        value.index_select(0, tree.paths),
        tree.boundaries,
        tree.path_boundaries,
        tree.longest,
        tree.longest_path,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None]


class _BlockAttention(torch.autograd.Function):
    """`prefix_attention` on the CPU, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tree: PrefixTree,
        scale: float | None,
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        output = torch.empty_like(query, dtype=wide)
        normaliser = query.new_empty(query.shape[:3], dtype=wide)
        for queries, keys, is_causal in tree.blocks:
            part, of_part = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                0.0,
                is_causal,
                scale=scale,
            )
            so_far, of_so_far = (x[:, :, queries] for x in (output, normaliser))
            if is_causal:
                so_far.copy_(part)
                of_so_far.copy_(of_part)
                continue
            total = torch.logaddexp(of_so_far, of_part)
            so_far.mul_((of_so_far - total).exp_()[..., None])
            so_far.addcmul_(part.to(wide), (of_part - total).exp_()[..., None])
            of_so_far.copy_(total)
        output = output.to(query.dtype)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.tree, ctx.scale = tree, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        grad = _with_dense_heads(grad)
        states = (query, key, value)
        gradients = [torch.zeros_like(x, dtype=normaliser.dtype) for x in states]
        backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        for queries, keys, is_causal in ctx.tree.blocks:
            places = (queries, keys, keys)
            parts = backward(
                grad[:, :, queries],
                *(x[:, :, place] for x, place in zip(states, places, strict=True)),
                output[:, :, queries],
                normaliser[:, :, queries],
                0.0,
                is_causal,
                scale=ctx.scale,
            )
            for gradient, place, part in zip(gradients, places, parts, strict=True):
                gradient[:, :, place] += part
        return *(x.to(query.dtype) for x in gradients), None, None


def _with_dense_heads(states: Tensor) -> Tensor:
    """What the kernels of the CPU take for granted, other strides they read."""
    return states if states.stride(-1) == 1 else states.contiguous()
