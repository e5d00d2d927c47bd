"""How packed sequences pass through a decoder, and back to where they were.

Best is one row without padding, whose attention is told where sequences begin. Where it
cannot be told, transformers derives a mask from position ids that restart. The state of
linear attention or of a convolution runs on; for such decoders every sequence gets a
row of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async.models.attention import knows_boundaries
from rllib_llm_async.models.shared_prefixes import prefix_tree

#: From tokens ``[rows, length]`` and further arguments of a decoder to hidden states.
Decode = Callable[..., Tensor]


class Layout(enum.Enum):
    """What a decoder gets to see of packed rows, the cheapest first."""

    #: All sequences one behind the other, without padding.
    ONE_ROW = "one row"
    #: The packed rows as they are.
    ROWS = "rows"
    SEQUENCE_PER_ROW = "one sequence per row"


def hidden_states(
    layout: Layout,
    decode: Decode,
    tokens: Tensor,
    position_ids: Tensor,
    wanted: Tensor,
    *,
    of_tokens: Mapping[str, Tensor] | None = None,
    share_prefixes: bool = False,
) -> Tensor:
    """Last hidden states ``[wanted, hidden]`` at some tokens of packed rows.

    Args:
        layout: One that the decoder can do.
        decode: The decoder.
        tokens: int64 ``[rows, length]``.
        position_ids: int64 ``[rows, length]``, from 0 at the start of each sequence
            and 0 at all padding.
        wanted: int64 ``[wanted]``, indices into the flattened rows.
        of_tokens: Further arguments of the decoder, each ``[rows, length, ...]``.
        share_prefixes: Compute what sequences begin with in common once; needs the
            layout `ONE_ROW`. Of `of_tokens` it takes what belongs to the first of them,
            in the order of their tokens.
    """
    of_tokens = of_tokens or {}
    match layout:
        case Layout.ONE_ROW:
            return _hidden_of_one_row(
                decode, tokens, position_ids, wanted, of_tokens, share_prefixes
            )
        case Layout.ROWS:
            # No attention mask: transformers derives block-diagonal causal attention
            # from the restarting position ids.
            hidden = decode(tokens, position_ids=position_ids, **of_tokens)
        case Layout.SEQUENCE_PER_ROW:
            hidden = hidden_one_sequence_per_row(
                decode, tokens, position_ids, of_tokens
            )
    return hidden.flatten(0, 1).index_select(0, wanted)


def best_layout(causal_lm: Any) -> Layout:
    """The cheapest layout that a model can do by what it says of itself."""
    if _cuts_by_place_in_row(causal_lm):
        return Layout.SEQUENCE_PER_ROW
    return Layout.ONE_ROW if knows_boundaries(causal_lm) else Layout.ROWS


def _cuts_by_place_in_row(causal_lm: Any) -> bool:
    """Whether attention may be cut where a row, not a sequence, reaches some length.

    Chunks, blocks and compressed stretches are counted from the start of a row, and
    are too long for the self-check to meet one: of what is not known it is assumed.
    """
    kinds = getattr(causal_lm.config.get_text_config(), "layer_types", None) or ()
    return not {"full_attention", "sliding_attention"}.issuperset(kinds)


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
            config.sliding_window if window_is_a_limit(config) else None,
            "vLLM and transformers take this model's sliding window differently",
        ),
    ):
        if limit is not None and position_ids.max() >= limit:
            raise ValueError(
                f"engine: max_model_len allows {int(position_ids.max()) + 1} tokens, "
                f"but beyond {limit} {reason}; set max_model_len to at most {limit}"
            )


def window_is_a_limit(config: Any) -> bool:
    """Whether sequences beyond the sliding window are refused, see `check_lengths`."""
    return config.model_type.startswith("cohere2")


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


def _hidden_of_one_row(
    decode: Decode,
    tokens: Tensor,
    position_ids: Tensor,
    wanted: Tensor,
    of_tokens: Mapping[str, Tensor],
    share_prefixes: bool,
) -> Tensor:
    """`hidden_states` from one row of all sequences, without padding."""
    places = _tokens_of_sequences(position_ids)
    row, positions = tokens.flatten()[places], position_ids.flatten()[places]
    told = {key: column.flatten(0, 1)[places] for key, column in of_tokens.items()}
    in_row = torch.arange(len(row), device=row.device)
    starts = (positions == 0).nonzero().squeeze(1)
    boundaries = torch.cat([starts, starts.new_tensor([len(row)])]).int()
    lengths = boundaries.diff().tolist()
    longest, further = max(lengths), {}
    if share_prefixes and (tree := prefix_tree(row, lengths)):
        row, positions, in_row = row[tree.tokens], positions[tree.tokens], tree.places
        boundaries, longest = tree.boundaries, tree.longest
        told = {key: column[tree.tokens] for key, column in told.items()}
        further = {"prefixes": tree}
    hidden = decode(
        row[None],
        position_ids=positions[None],
        cu_seq_lens_q=boundaries,
        cu_seq_lens_k=boundaries,
        max_length_q=longest,
        max_length_k=longest,
        **{key: column[None] for key, column in told.items()},
        **further,
    )[0]
    found = torch.zeros(tokens.numel(), dtype=torch.int64, device=row.device)
    found[places] = in_row
    return hidden.index_select(0, found[wanted])


def _tokens_of_sequences(position_ids: Tensor) -> Tensor:
    """Flat indices of the tokens in sequences of two or more; never empty."""
    inside = position_ids > 0
    begins = torch.zeros_like(inside)
    begins[:, :-1] = inside[:, 1:] & ~inside[:, :-1]
    places = (inside | begins).flatten().nonzero().squeeze(1)
    return places if len(places) else places.new_zeros(1)


def hidden_one_sequence_per_row(
    decode: Decode,
    tokens: Tensor,
    position_ids: Tensor,
    of_tokens: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Hidden states ``[rows, length, hidden]`` of packed rows, each sequence alone.

    Args:
        decode: From tokens ``[n, l]``, one sequence in each row, to hidden states.
        tokens: int64 ``[rows, length]``.
        position_ids: int64 ``[rows, length]``, see `hidden_states`.
        of_tokens: See there.

    Returns:
        The hidden states; 0 at padding and in sequences of one token. No pass holds
        more than rows x length tokens.
    """
    device = tokens.device
    of_tokens = of_tokens or {}
    starts, lengths = _sequences(position_ids)
    flat = tokens.flatten()
    values, places = [], []
    for group in _alike_in_length(lengths, tokens.numel()):
        offset = torch.arange(int(lengths[group[0]]), device=device)
        inside = offset < lengths[group, None].to(device)
        index = (starts[group, None].to(device) + offset).where(inside, 0)
        told = {key: column.flatten(0, 1)[index] for key, column in of_tokens.items()}
        values.append(decode(flat[index].where(inside, 0), **told)[inside])
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
