"""How packed sequences pass through a decoder: side by side, or one per row.

Attention can be told by restarting position ids where a sequence begins. The state of
linear attention or of a convolution runs on; for such decoders every sequence gets a
row of its own, and its hidden states go back to where the sequence was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def cuts_by_place_in_row(causal_lm: Any) -> bool:
    """Whether attention is cut where a row, not a sequence, reaches some length.

    The chunks of chunked attention are too long for the self-check to meet one.
    """
    kinds = getattr(causal_lm.config.get_text_config(), "layer_types", None) or ()
    return "chunked_attention" in kinds


def check_lengths(causal_lm: Any, position_ids: Tensor) -> None:
    """Refuses sequences of which an engine would compute something else.

    Rotary embeddings of the kinds "dynamic" and "longrope" take their frequencies from
    the longest sequence of a pass as soon as one is beyond the original length; an
    engine takes them from the longest that it allows. And vLLM gives Cohere 2 one token
    more in a sliding window than transformers does
    (vllm/model_executor/models/commandr.py).

    Raises:
        ValueError: If there is such a sequence.
    """
    config = causal_lm.config.get_text_config()
    for limit, reason in (
        (
            _rope_limit(config),
            "the rotary embedding of this model depends on what else is in a pass",
        ),
        (
            config.sliding_window if config.model_type.startswith("cohere2") else None,
            "vLLM and transformers take this model's sliding window differently",
        ),
    ):
        if limit is not None and position_ids.max() >= limit:
            raise ValueError(
                f"engine: max_model_len allows {int(position_ids.max()) + 1} tokens, "
                f"but beyond {limit} {reason}; set max_model_len to at most {limit}"
            )


def _rope_limit(config: Any) -> int | None:
    """Original length of a rotary embedding that depends on the length, or None."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [p for p in parameters.values() if isinstance(p, dict)]
    limits = [
        p.get("original_max_position_embeddings") or config.max_position_embeddings
        for p in by_layer_type or [parameters]
        if p.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def hidden_one_sequence_per_row(
    decode: Callable[[Tensor], Tensor], tokens: Tensor, position_ids: Tensor
) -> Tensor:
    """Hidden states ``[rows, length, hidden]`` of packed rows, each sequence alone.

    Args:
        decode: From tokens ``[n, l]``, one sequence in each row, to hidden states.
        tokens: int64 ``[rows, length]``.
        position_ids: int64 ``[rows, length]``, from 0 at the start of each sequence
            and at all padding.

    Returns:
        The hidden states; 0 at padding and in sequences of one token. No pass holds
        more than rows x length tokens.
    """
    device = tokens.device
    starts, lengths = _sequences(position_ids)
    flat = tokens.flatten()
    values, places = [], []
    for group in _alike_in_length(lengths, tokens.numel()):
        offset = torch.arange(int(lengths[group[0]]), device=device)
        inside = offset < lengths[group, None].to(device)
        index = (starts[group, None].to(device) + offset).where(inside, 0)
        values.append(decode(flat[index].where(inside, 0))[inside])
        places.append(index[inside])
    hidden = torch.cat(values)
    full = hidden.new_zeros((tokens.numel(), hidden.shape[-1]))
    full = full.index_copy(0, torch.cat(places), hidden)
    return full.view(*tokens.shape, -1)


def _sequences(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Flat start and length of each sequence of two tokens or more, the longest first.

    Both int64 ``[sequences]`` on the CPU; never empty.
    """
    begins = position_ids == 0
    begins[:, 0] = True
    starts = begins.flatten().nonzero().squeeze(1).cpu()
    ends = torch.cat([starts[1:], torch.tensor([position_ids.numel()])])
    order = (ends - starts).argsort(descending=True, stable=True)
    starts, lengths = starts[order], (ends - starts)[order]
    count = max(1, int((lengths > 1).sum()))
    return starts[:count], lengths[:count]


def _alike_in_length(lengths: Tensor, max_tokens: int) -> Iterator[Tensor]:
    """Indices of sequences for one pass: padded to the first, they fit ``max_tokens``.

    None is shorter than half of the first, so that padding cannot double the work.
    """
    start = 0
    while start < len(lengths):
        longest = int(lengths[start])
        room = max(1, max_tokens // longest)
        end = min(start + room, int((2 * lengths >= longest).sum()))
        yield torch.arange(start, end)
        start = end
