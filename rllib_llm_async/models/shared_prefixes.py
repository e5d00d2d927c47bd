"""Beginnings that sequences have in common, laid out so that each is computed once.

Sorted by their tokens, sequences are the paths of a prefix tree in depth-first order:
of each one what goes beyond the one before is new. A row of the new tokens alone holds
every node of the tree once, and all that continues a prefix lies in one piece behind
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Shorter common beginnings are computed anew: looking them up would cost more.
MIN_SHARED_TOKENS = 16


class Block(NamedTuple):
    """Places in the row that see others: all of them, or causally each what is before.

    If ``is_causal`` both are the same.
    """

    queries: slice
    keys: slice
    is_causal: bool


class PrefixTree(NamedTuple):
    """A row of tokens, each once, in which sequences continue common beginnings.

    ``tokens`` int64 ``[row]``: which of the given tokens is at each place.
    ``places`` int64 ``[tokens]``: where each of the given tokens is computed.
    ``blocks``: who sees whom; first the pieces that are new in one sequence each, which
    make up the row, then what these continue.
    ``boundaries`` int32 ``[pieces + 1]`` of the pieces, ``longest`` of their lengths.
    ``paths`` int64: of each piece the places of its sequence up to its end, one behind
    the other, with ``path_boundaries`` and ``longest_path``.
    """

    tokens: Tensor
    places: Tensor
    blocks: list[Block]
    boundaries: Tensor
    longest: int
    paths: Tensor
    path_boundaries: Tensor
    longest_path: int


def prefix_tree(tokens: Tensor, lengths: Sequence[int]) -> PrefixTree | None:
    """The tree of some sequences; None if they have nothing in common.

    Args:
        tokens: int64 ``[tokens]``, the sequences one behind the other.
        lengths: Of the sequences.
    """
    sequences = np.split(tokens.cpu().numpy(), np.cumsum(lengths)[:-1])
    order = in_order_of_tokens(sequences)
    shared = [0] + [_common(sequences[i], sequences[j]) for i, j in pairwise(order)]
    if not any(shared):
        return None
    pieces = [len(sequences[i]) - n for i, n in zip(order, shared, strict=True)]
    first = np.cumsum([0, *lengths])
    row, paths = [], [np.zeros(0, np.int64)]
    size = 0
    for number, common, new in zip(order, shared, pieces, strict=True):
        row.append(np.arange(first[number] + common, first[number + 1]))
        paths.append(np.append(paths[-1][:common], np.arange(size, size + new)))
        size += new
    del paths[0]
    places = np.concatenate([paths[i] for i in np.argsort(order)])
    paths = [path for path, new in zip(paths, pieces, strict=True) if new]

    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(tokens.device)

    ends = np.cumsum([0, *(new for new in pieces if new)])
    path_lengths = list(map(len, paths))
    return PrefixTree(
        tokens=on_device(np.concatenate(row)),
        places=on_device(places),
        blocks=[
            *(Block(slice(i, j), slice(i, j), True) for i, j in pairwise(ends)),
            *_continued(shared, pieces),
        ],
        boundaries=on_device(ends.astype(np.int32)),
        longest=max(pieces),
        paths=on_device(np.concatenate(paths)),
        path_boundaries=on_device(np.cumsum([0, *path_lengths]).astype(np.int32)),
        longest_path=max(path_lengths),
    )


def in_order_of_tokens(sequences: Sequence[np.ndarray]) -> list[int]:
    """Numbers of the sequences, sorted so that common beginnings are neighbours."""
    big_endian = [sequence.astype(">u4").tobytes() for sequence in sequences]
    return sorted(range(len(sequences)), key=big_endian.__getitem__)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """Length of the common beginning; 0 if it is too short to be of use."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    common = int(differ[0]) if len(differ) else length
    return common if common >= MIN_SHARED_TOKENS else 0


def _continued(shared: Sequence[int], pieces: Sequence[int]) -> Iterator[Block]:
    """Which prefixes are seen by what continues them.

    Args:
        shared: Length of what each sequence has in common with the one before.
        pieces: Number of its new tokens.
    """
    # What the next sequence continues, outermost first: from and to which depth, and
    # the places of its first key and of the first that continued it.
    open_: list[tuple[int, int, int, int]] = []
    size = before = 0
    for common, new in zip([*shared, 0], [*pieces, 0], strict=True):
        while open_ and open_[-1][1] > common:
            begin, end, key, query = open_.pop()
            cut = max(begin, common)
            if query < size:
                keys = slice(key + cut - begin, key + end - begin)
                yield Block(slice(query, size), keys, False)
            if begin < cut:
                open_.append((begin, cut, key, query))
        covered = open_[-1][1] if open_ else 0
        if covered < common:
            open_.append((covered, common, before, size))
        before = size
        size += new
