"""Which attention a model computes with: one of our own where that can do it.

`packed_attention` knows where sequences begin and never looks across: its cost is that
of the sequences, whatever the row. It is registered with transformers, whose layers
hand it the boundaries that the decoder was given (`cu_seq_lens_q`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async.models.causal_attention import (
    attend_each_sequence,
    causal_attention,
    fits_varlen,
    has_varlen,
    varlen_attention,
)
from rllib_llm_async.models.prefix_attention import prefix_attention
from rllib_llm_async.models.shared_prefixes import PrefixTree

#: The name under which transformers knows `packed_attention`.
PACKED = "packed"
#: What a model that can have that one computes with otherwise.
PLAIN = "sdpa"

#: Arguments of attention functions that change the scores and are not computed here.
_OTHER_SCORES = ("softcap", "s_aux", "position_bias", "indices")


def set_attention(causal_lm: Any, implementation: str) -> None:
    """Has a model compute with the best attention for packed rows, or a given one.

    Args:
        causal_lm: A causal LM of transformers.
        implementation: "auto", or a name that transformers knows.

    Raises:
        ValueError: In one line, if the model cannot compute with the given one.
    """
    has_cap = _soft_cap(causal_lm) is not None
    if implementation == "auto":
        if can_pack(causal_lm):
            use_packed(causal_lm)
        elif has_cap and causal_lm.config._attn_implementation == PLAIN:
            # SDPA leaves the cap out without a word; engines apply it.
            causal_lm.set_attn_implementation("eager")
        return
    name = type(causal_lm).__name__
    if has_cap and implementation == PLAIN:
        raise ValueError(
            f"attn_implementation: {PLAIN} leaves out the soft cap of {name}'s scores; "
            "set it to eager or auto"
        )
    try:
        causal_lm.set_attn_implementation(implementation)
    except (ValueError, ImportError, KeyError) as error:
        raise ValueError(
            f"attn_implementation: {name} cannot compute with {implementation}: "
            f"{shorten(str(error), 500)}"
        ) from error
    if causal_lm.config._attn_implementation != implementation:
        raise ValueError(
            f"attn_implementation: {name} computes with "
            f"{causal_lm.config._attn_implementation} whatever is asked for; set it to "
            "auto"
        )


def can_pack(causal_lm: Any) -> bool:
    """Whether a model's attention is the one that `packed_attention` computes.

    All of it has to go through transformers' interface and be that of SDPA: causal,
    of all tokens or of a sliding window. Whether a model really passes its windows and
    the boundaries on is for `self_check` to see.
    """
    kinds = getattr(causal_lm.config.get_text_config(), "layer_types", None) or ()
    return (
        getattr(causal_lm, "_supports_attention_backend", False)
        and getattr(causal_lm, "_supports_sdpa", False)
        and _soft_cap(causal_lm) is None
        and {"full_attention", "sliding_attention"}.issuperset(kinds)
    )


def _soft_cap(causal_lm: Any) -> float | None:
    return getattr(causal_lm.config.get_text_config(), "attn_logit_softcapping", None)


def use_packed(causal_lm: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)
    causal_lm.set_attn_implementation(PACKED)


def is_packed(causal_lm: Any) -> bool:
    return causal_lm.config._attn_implementation == PACKED


def knows_boundaries(causal_lm: Any) -> bool:
    """Whether attention takes sequences out of one row by their boundaries.

    transformers' FlashAttention does, with one row alone: of several it would attend
    from one sequence to another.
    """
    name = causal_lm.config._attn_implementation
    return name == PACKED or name.startswith("flash_attention")


def can_share_prefixes(
    causal_lm: Any, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether there is attention to prefixes that lie elsewhere in the row.

    Args:
        causal_lm: A causal LM of transformers.
        device: On which it computes.
        dtype: In which it computes.
    """
    config = causal_lm.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return (
        is_packed(causal_lm)
        and getattr(config, "sliding_window", None) is None
        and (device.type == "cpu" or has_varlen(device, dtype, head_dim))
    )


@contextlib.contextmanager
def plain_attention(causal_lm: Any) -> Iterator[None]:
    """Within it a model computes with transformers' own attention."""
    packed = is_packed(causal_lm)
    if packed:
        causal_lm.set_attn_implementation(PLAIN)
    try:
        yield
    finally:
        if packed:
            causal_lm.set_attn_implementation(PACKED)


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    prefixes: PrefixTree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, for transformers' `AttentionInterface`.

    Args:
        module: The attention layer.
        query: ``[rows, heads, length, head_dim]``.
        key: ``[rows, kv_heads, length, head_dim]``, as ``value``.
        value: See ``key``.
        attention_mask: None.
        scaling: Factor of the scores; None is 1 / sqrt(head_dim).
        sliding_window: Tokens that a token sees, itself among them; None for all.
        cu_seq_lens_q: int32 ``[sequences + 1]``, where the sequences of the only row
            begin, and its end; None if each row is one sequence.
        max_length_q: Length of the longest of them.
        prefixes: What the row holds, if its sequences continue prefixes in it.
        **kwargs: What else layers hand over.

    Returns:
        ``[rows, length, heads, head_dim]``, and no weights.

    Raises:
        ValueError: If something else is asked for than is computed here.
    """
    odd = [name for name in _OTHER_SCORES if kwargs.get(name) is not None]
    if attention_mask is not None:
        odd.append("attention_mask")
    if query.shape[2] != key.shape[2]:
        odd.append("past_key_values")
    if odd or not getattr(module, "is_causal", True):
        raise ValueError(f"packed attention knows no {', '.join(odd) or 'other order'}")
    if prefixes is not None and sliding_window is not None:
        raise ValueError("shared prefixes know no sliding window")
    if prefixes is not None:
        return prefix_attention(query, key, value, prefixes, scaling), None
    if cu_seq_lens_q is None:
        output = causal_attention(query, key, value, scaling, sliding_window)
        return output.transpose(1, 2), None
    states, numbers = (query, key, value, cu_seq_lens_q), (scaling, sliding_window)
    if fits_varlen(query, value):
        return varlen_attention(*states, max_length_q, *numbers), None
    return attend_each_sequence(*states, *numbers), None


def _no_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
    """Stands where transformers would build a mask ``[rows, 1, length, length]``."""
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("packed attention knows no padding within a row")
