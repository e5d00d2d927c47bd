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
}


def pack_rows(
    sequences: Sequence[dict[str, np.ndarray]],
    *,
    min_row_tokens: int,
    min_rows: int = 1,
) -> dict[str, np.ndarray]:
    """Packs ragged columns into ``[rows, length]``, first-fit by falling length.

    Args:
        sequences: For each sequence its columns, all ``[tokens]`` and alike in names.
        min_row_tokens: Rows are as long as the longest sequence or this, whichever is
            more (less where no row needs that much).
        min_rows: Rows that there are at least, if there are as many sequences; none
            holds more than its share of their number.

    Returns:
        ``[rows, length]`` columns; no sequences give one row of padding, in every
        column.
    """
    if not sequences:
        return {key: np.full((1, 2), padding) for key, padding in PADDING.items()}
    lengths = np.array([len(sequence[columns.TOKENS]) for sequence in sequences])
    row, start = first_fit(
        lengths,
        max(int(lengths.max()), min_row_tokens),
        max_sequences=max(1, len(lengths) // min_rows),
    )
    shape = int(row.max()) + 1, int((start + lengths).max())
    packed = {key: np.full(shape, PADDING[key]) for key in sequences[0]}
    for index, sequence in enumerate(sequences):
        place = slice(start[index], start[index] + lengths[index])
        for key, column in packed.items():
            column[row[index], place] = sequence[key]
    return packed


def first_fit(
    lengths: np.ndarray, row_tokens: int, max_sequences: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Places sequences into rows, the longest first, each where there is room.

    Args:
        lengths: int ``[sequences]``, none above ``row_tokens``.
        row_tokens: Room of a row.
        max_sequences: In one row; None sets no limit.

    Returns:
        Row and first position of each sequence, int64 ``[sequences]``.
    """
    row = np.zeros(len(lengths), np.int64)
    start = np.zeros(len(lengths), np.int64)
    room: list[int] = []
    held: list[int] = []  # sequences in each row
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        fitting = next(
            (
                r
                for r, free in enumerate(room)
                if free >= length and (max_sequences is None or held[r] < max_sequences)
            ),
            None,
        )
        if fitting is None:
            fitting = len(room)
            room.append(row_tokens)
            held.append(0)
        row[index], start[index] = fitting, row_tokens - room[fitting]
        room[fitting] -= length
        held[fitting] += 1
    return row, start


@dataclass(frozen=True)
class Prefixes:
    """Beginnings of some sequences of a batch, packed anew.

    ``batch`` holds tokens, position ids and the mask of the wanted tokens;
    ``index`` int64 ``[wanted]`` says where in the flattened original each of them is,
    in the order of the new mask's true elements.
    """

    batch: dict[str, Tensor]
    index: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that a pass over it computes, padding left out."""
        return int((self.batch[columns.SEQUENCE_IDS] >= 0).sum())


def select_prefixes(batch: Mapping[str, Tensor], wanted: Tensor) -> Prefixes:
    """What a pass has to see to score some tokens: their sequences up to the last one.

    Args:
        batch: Row-packed columns.
        wanted: bool ``[rows, length]``, at least one true, none at padding.
    """
    length = wanted.shape[1]
    sequence = batch[columns.SEQUENCE_IDS].flatten()
    position = batch[columns.POSITION_IDS].flatten()
    chosen = wanted.flatten()
    ends = torch.zeros(int(sequence.max()) + 1, dtype=torch.int64, device=wanted.device)
    ends.scatter_reduce_(0, sequence[chosen], position[chosen] + 1, "amax")
    row, start = first_fit(ends.cpu().numpy(), length)
    base = torch.from_numpy(row * length + start).to(wanted.device)

    kept = (sequence >= 0) & (position < ends[sequence.clamp(min=0)])
    place = base[sequence[kept]] + position[kept]
    shape = int(row.max()) + 1, length
    packed = {
        columns.TOKENS: batch[columns.TOKENS].flatten()[kept],
        columns.POSITION_IDS: position[kept],
        columns.LOSS_MASK: chosen[kept],
        columns.SEQUENCE_IDS: sequence[kept],
    }
    for key, values in packed.items():
        column = torch.full(
            shape, PADDING[key].item(), dtype=values.dtype, device=values.device
        )
        column.view(-1)[place] = values
        packed[key] = column[:, : int((start + ends.cpu().numpy()).max())]
    index = torch.full((shape[0] * length,), -1, device=wanted.device)
    index[place] = kept.nonzero().squeeze(1)
    in_order = index.view(shape)[:, : packed[columns.TOKENS].shape[1]]
    return Prefixes(packed, in_order[packed[columns.LOSS_MASK]])
