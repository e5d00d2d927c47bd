"""Ragged token sequences to rows that hold several whole sequences each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rllib_llm_async import columns

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


def micro_batches(
    batch: Mapping[str, Any], max_tokens: int
) -> Iterator[dict[str, Any]]:
    """Slices of whole rows with at most ``max_tokens`` tokens each, but one row."""
    rows, length = batch[columns.TOKENS].shape
    step = max(1, max_tokens // max(length, 1))
    for start in range(0, max(rows, 1), step):
        yield {key: column[start : start + step] for key, column in batch.items()}


def pack_rows(
    sequences: Sequence[dict[str, np.ndarray]], *, min_row_tokens: int
) -> dict[str, np.ndarray]:
    """Packs ragged columns into ``[rows, length]``, first-fit by falling length.

    Args:
        sequences: For each sequence its columns, all ``[tokens]`` and alike in names.
        min_row_tokens: Rows are as long as the longest sequence or this, whichever is
            more (less where no row needs that much).

    Returns:
        ``[rows, length]`` columns; no sequences give one row of padding, in every
        column.
    """
    if not sequences:
        return {key: np.full((1, 2), padding) for key, padding in PADDING.items()}
    lengths = [len(sequence[columns.TOKENS]) for sequence in sequences]
    row_tokens = max(max(lengths), min_row_tokens)
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda i: -lengths[i]):
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= lengths[index]
    row_tokens -= min(room)
    packed = {
        key: np.full((len(rows), row_tokens), PADDING[key]) for key in sequences[0]
    }
    for row, members in enumerate(rows):
        start = 0
        for index in members:
            end = start + lengths[index]
            for key, column in packed.items():
                column[row, start:end] = sequences[index][key]
            start = end
    return packed
