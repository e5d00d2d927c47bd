"""Packing keeps every sequence whole and in order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async import columns
from rllib_llm_async.packing import pack_rows


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 128))
def test_every_sequence_comes_back(lengths, min_row_tokens):
    sequences = [
        {
            columns.TOKENS: np.arange(length) + 100 * number,
            columns.SEQUENCE_IDS: np.full(length, number),
            columns.POSITION_IDS: np.arange(length),
        }
        for number, length in enumerate(lengths)
    ]
    packed = pack_rows(sequences, min_row_tokens=min_row_tokens)
    ids, tokens = packed[columns.SEQUENCE_IDS], packed[columns.TOKENS]
    for number, sequence in enumerate(sequences):
        rows = np.unique(np.nonzero(ids == number)[0])
        assert len(rows) == 1
        np.testing.assert_array_equal(tokens[ids == number], sequence[columns.TOKENS])
    assert (ids >= 0).sum() == sum(lengths)
    assert tokens.shape[1] <= max(max(lengths), min_row_tokens)
