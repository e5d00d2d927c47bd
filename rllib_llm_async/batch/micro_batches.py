"""Rows of a batch to the passes of a model that go over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from rllib_llm_async.batch import columns


def micro_batches(
    batch: Mapping[str, Tensor], max_tokens: int, *, share_prefixes: bool
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Parts of whole rows with at most ``max_tokens`` tokens each, but one row.

    Args:
        batch: Row-packed columns.
        max_tokens: Tokens of a part. Where prefixes are shared those that it computes,
            else places in its rows.
        share_prefixes: Whether a pass computes once what sequences begin with in
            common. Rows that do are then in one part, as far as it holds them.

    Yields:
        Numbers of the rows, int64, and their columns.
    """
    tokens = batch[columns.TOKENS]
    rows, length = tokens.shape
    step = max(1, max_tokens // max(length, 1))
    if share_prefixes and step < rows:
        parts = _parts_by_prefix(tokens, batch[columns.POSITION_IDS], max_tokens)
    else:
        parts = torch.arange(rows).split(step)
    for part in parts:
        part = part.to(tokens.device)
        yield part, {key: column[part] for key, column in batch.items()}


def in_row_order(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Joins ``[rows, ...]`` values of parts, each with the numbers of its rows."""
    rows, values = zip(*parts, strict=True)
    joined = torch.cat(values)
    return torch.empty_like(joined).index_copy_(0, torch.cat(rows), joined)


def _parts_by_prefix(
    tokens: Tensor, position_ids: Tensor, max_tokens: int
) -> Iterator[Tensor]:
    """Numbers of the rows of each part, rows with common beginnings side by side."""
    ids, positions = tokens.cpu().numpy(), position_ids.cpu().numpy()
    big_endian = ids.astype(">u4")
    order = np.array(sorted(range(len(ids)), key=lambda row: big_endian[row].tobytes()))
    ids, positions = ids[order], positions[order]
    row, last = _earlier_row(ids, positions)
    start = 0
    while start < len(ids):
        new = np.bincount(row[last < start], minlength=len(ids))[start:]
        fitting = np.searchsorted(new.cumsum(), max_tokens, side="right")
        end = start + max(1, int(fitting))
        yield torch.from_numpy(order[start:end])
        start = end


def _earlier_row(
    ids: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row of each token, and the last row up to that with the same text up to it.

    Both int64 ``[tokens]``, padding left out; -1 where there is no such row. Texts are
    told apart by a hash of 64 bits: this decides about the size of parts, not about
    what is computed.
    """
    hashes = _mixed(ids.astype(np.uint64) << 32 | positions.astype(np.uint64))
    sums = np.cumsum(hashes, axis=1, dtype=np.uint64)
    starts = np.arange(ids.shape[1]) - positions
    before = np.take_along_axis(sums - hashes, starts, axis=1)
    inside = positions > 0
    inside[:, :-1] |= inside[:, 1:]
    row = inside.nonzero()[0]
    texts = (sums - before)[inside]
    order = np.argsort(texts, kind="stable")
    last = np.full(len(row), -1)
    same = texts[order][1:] == texts[order][:-1]
    last[order[1:][same]] = row[order[:-1][same]]
    return row, last


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014), elementwise on uint64."""
    numbers = (numbers ^ (numbers >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> 27)) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> 31)
