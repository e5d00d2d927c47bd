"""Ragged token sequences to rows that hold several whole sequences each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rllib_llm_async.batch import columns

#: What each column holds where a row is not filled; the dtype is the column's.
PADDING: dict[str, np.generic] = {
    columns.TOKENS: np.int64(0),
    columns.POSITION_IDS: np.int64(0),
    columns.LOSS_MASK: np.bool_(False),
    columns.BEHAVIOR_LOGP: np.float32(0.0),
    columns.SCORED_OLD_LOGP: np.float32(0.0),
    columns.ADVANTAGES: np.float32(0.0),
    columns.VERSIONS: np.int64(-1),
    columns.SEQUENCE_IDS: np.int64(-1),
    columns.TURN_IDS: np.int64(-1),
    columns.EPISODE_KEYS: np.int64(-1),
    columns.ROUTED_EXPERTS: np.int16(-1),
}
#: What stands for a column that some sequences have and others have not.
MISSING: dict[str, np.generic] = {
    columns.SCORED_OLD_LOGP: np.float32(np.nan),
    columns.ROUTED_EXPERTS: PADDING[columns.ROUTED_EXPERTS],
}


def pack_rows(
    sequences: Sequence[dict[str, np.ndarray]],
    *,
    min_row_tokens: int,
) -> dict[str, np.ndarray]:
    """Packs ragged columns into ``[rows, length]``, first-fit by falling length.

    Args:
        sequences: For each sequence its columns, all ``[tokens, ...]`` and alike in
            names, but that some may lack those of `MISSING`.
        min_row_tokens: Rows are as long as the longest sequence or this, whichever is
            more (less where no row needs that much).

    Returns:
        ``[rows, length, ...]`` columns; no sequences give one row of padding, in every
        column but `columns.ROUTED_EXPERTS`, whose shape is the model's.
    """
    if not sequences:
        return {
            key: np.full((1, 2), padding)
            for key, padding in PADDING.items()
            if key != columns.ROUTED_EXPERTS
        }
    lengths = np.array([len(sequence[columns.TOKENS]) for sequence in sequences])
    row, start = first_fit(lengths, max(int(lengths.max()), min_row_tokens))
    shape = int(row.max()) + 1, int((start + lengths).max())
    packed = {
        key: np.full(shape + column.shape[1:], PADDING[key])
        for key, column in {k: c for s in sequences for k, c in s.items()}.items()
    }
    for index, sequence in enumerate(sequences):
        place = slice(start[index], start[index] + lengths[index])
        for key, column in packed.items():
            column[row[index], place] = (
                sequence[key] if key in sequence else MISSING[key]
            )
    return packed


def experts_of_tokens(turns: Sequence[np.ndarray], length: int) -> np.ndarray:
    """`columns.ROUTED_EXPERTS` of one sequence, int16 ``[length, layers, top_k]``.

    Args:
        turns: What each turn told, see `EngineOutput`; at least one that is not empty.
        length: Tokens of the sequence. Turns may tell of fewer, then of the first ones,
            or of more, which are left out.
    """
    known = np.concatenate([experts for experts in turns if len(experts)])[:length]
    padding = PADDING[columns.ROUTED_EXPERTS]
    routed = np.full((length, *known.shape[1:]), padding)
    routed[: len(known)] = known
    return routed


def first_fit(lengths: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Places sequences into rows, the longest first, each where there is room.

    Args:
        lengths: int ``[sequences]``, none above ``row_tokens``.
        row_tokens: Room of a row.

    Returns:
        Row and first position of each sequence, int64 ``[sequences]``.
    """
    row = np.zeros(len(lengths), np.int64)
    start = np.zeros(len(lengths), np.int64)
    room: list[int] = []
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        fitting = next((r for r, free in enumerate(room) if free >= length), None)
        if fitting is None:
            fitting = len(room)
            room.append(row_tokens)
        row[index], start[index] = fitting, row_tokens - room[fitting]
        room[fitting] -= length
    return row, start


@dataclass(frozen=True)
class Spans:
    """Beginnings of sequences in a flattened batch; int64 ``[spans]``, on the host.

    ``starts`` says where each begins, ``lengths`` how many tokens it has.
    """

    starts: np.ndarray
    lengths: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Spans:
        """Some of them."""
        return Spans(self.starts[chosen], self.lengths[chosen])

    def pack(self, row_tokens: int) -> np.ndarray:
        """Packs them into rows of at most ``row_tokens``; none give a row of padding.

        Returns:
            int64 ``[rows, length]``, where in the flattened batch each place of the
            rows is; -1 at padding.
        """
        if not len(self.starts):
            return np.full((1, 2), -1)
        row, start = first_fit(self.lengths, row_tokens)
        index = np.full((int(row.max()) + 1, int((start + self.lengths).max())), -1)
        for number, source in enumerate(self.starts):
            place = slice(start[number], start[number] + self.lengths[number])
            index[row[number], place] = np.arange(source, source + self.lengths[number])
        return index


def spans_up_to(batch: Mapping[str, Tensor], wanted: Tensor) -> Spans:
    """The sequences that hold wanted tokens, each up to the last of them.

    In the order of their numbers. The host waits for the device once.

    Args:
        batch: Row-packed columns.
        wanted: bool ``[rows, length]``, none at padding.
    """
    place = wanted.flatten().nonzero().squeeze(1)
    sequence, position, place = (
        torch.stack(
            [
                batch[columns.SEQUENCE_IDS].flatten()[place],
                batch[columns.POSITION_IDS].flatten()[place],
                place,
            ]
        )
        .cpu()
        .numpy()
    )
    # Places of a sequence ascend: in reverse, the last is met first.
    _, last = np.unique(sequence[::-1], return_index=True)
    position, place = position[::-1][last], place[::-1][last]
    return Spans(starts=place - position, lengths=position + 1)


def take(batch: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """Columns whose places come from those of a batch.

    Args:
        batch: Row-packed columns.
        index: int64 ``[rows, length]``, see `Spans.pack`.
    """
    is_padding = index < 0
    source = index.clamp(min=0)
    return {
        key: column.flatten(0, 1)[source].masked_fill_(
            is_padding.view(*index.shape, *[1] * (column.dim() - 2)),
            # Columns that a learner added hold 0 there.
            PADDING[key].item() if key in PADDING else 0,
        )
        for key, column in batch.items()
    }


@dataclass(frozen=True)
class Prefixes:
    """Beginnings of some sequences of a batch, packed anew.

    ``batch`` holds what a pass needs, sequence ids and the mask of the wanted tokens;
    ``index`` int64 ``[wanted]`` says where in the flattened original each of them is,
    in the order of the new mask's true elements; ``num_tokens`` is what a pass over it
    computes, padding left out.
    """

    batch: dict[str, Tensor]
    index: Tensor
    num_tokens: int


def select_prefixes(batch: Mapping[str, Tensor], wanted: Tensor) -> Prefixes:
    """What a pass has to see to score some tokens: their sequences up to the last one.

    Args:
        batch: Row-packed columns.
        wanted: bool ``[rows, length]``, none true at padding. Where none is at all, the
            new batch is a row of padding.
    """
    spans = spans_up_to(batch, wanted)
    index = torch.from_numpy(spans.pack(wanted.shape[1])).to(wanted.device)
    seen = {
        key: batch[key]
        for key in (
            columns.TOKENS,
            columns.POSITION_IDS,
            columns.SEQUENCE_IDS,
            columns.ROUTED_EXPERTS,
        )
        if key in batch
    }
    packed = take({**seen, columns.LOSS_MASK: wanted}, index)
    return Prefixes(packed, index[packed[columns.LOSS_MASK]], int(spans.lengths.sum()))
