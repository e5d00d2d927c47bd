"""Rows to passes: every row once, those that begin alike together, within the limit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.micro_batches import in_row_order, micro_batches
from rllib_llm_async.batch.packing import pack_rows


def test_without_sharing_parts_are_slices():
    batch = {columns.TOKENS: torch.arange(15).view(5, 3)}
    parts = list(micro_batches(batch, 6, share_prefixes=False))
    assert [rows.tolist() for rows, _ in parts] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("max_tokens", [1, 40, 75, 130, 1000])
def test_parts_hold_as_many_different_texts_as_fit(max_tokens):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 400, length) for length in (30, 21, 25)]
    sequences = [
        np.append(prompts[number % 3], rng.integers(5, 400, 3 + number))
        for number in rng.permutation(15)
    ]
    packed = pack_rows(
        [
            {columns.TOKENS: tokens, columns.POSITION_IDS: np.arange(len(tokens))}
            for tokens in sequences
        ],
        min_row_tokens=80,
    )
    batch = {key: torch.from_numpy(column) for key, column in packed.items()}
    parts = list(micro_batches(batch, max_tokens, share_prefixes=True))

    def texts(rows):
        """All beginnings of sequences in these rows, what a pass computes."""
        held = set()
        for row in rows.tolist():
            positions = [*batch[columns.POSITION_IDS][row].tolist(), 0]
            tokens = batch[columns.TOKENS][row].tolist()
            for place, position in enumerate(positions[:-1]):
                if position or positions[place + 1]:
                    held.add(tuple(tokens[place - position : place + 1]))
        return held

    rows = [rows for rows, _ in parts]
    assert sorted(torch.cat(rows).tolist()) == list(range(len(batch[columns.TOKENS])))
    sizes = [len(texts(part)) for part in rows]
    assert all(s <= max_tokens or len(r) == 1 for s, r in zip(sizes, rows))
    for part, following in pairwise(rows):
        # None is left half empty: the next row did not fit.
        assert len(texts(torch.cat([part, following[:1]]))) > max_tokens
    for part, held in parts:
        for key, column in batch.items():
            assert torch.equal(held[key], column[part])
    tokens = batch[columns.TOKENS]
    assert torch.equal(in_row_order((r, tokens[r]) for r in rows), tokens)
