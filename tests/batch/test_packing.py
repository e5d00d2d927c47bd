"""Packing keeps every sequence whole and in order."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows, select_prefixes


@settings(deadline=None)
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


@settings(deadline=None)
@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=30),
    st.integers(1, 128),
    st.integers(0, 2**31),
    st.sampled_from([0.005, 0.1, 1.0]),
)
def test_prefixes_hold_all_that_precedes_a_wanted_token(
    lengths, min_row_tokens, seed, share
):
    rng = np.random.default_rng(seed)
    sequences = [
        {
            columns.TOKENS: rng.integers(1, 1000, length),
            columns.SEQUENCE_IDS: np.full(length, number),
            columns.POSITION_IDS: np.arange(length),
            columns.LOSS_MASK: np.arange(length) > 0,
        }
        for number, length in enumerate(lengths)
    ]
    batch = {
        key: torch.from_numpy(column)
        for key, column in pack_rows(sequences, min_row_tokens=min_row_tokens).items()
    }
    wanted = batch[columns.LOSS_MASK] & torch.from_numpy(
        rng.random(batch[columns.TOKENS].shape) < share
    )
    if not wanted.any():
        wanted = batch[columns.LOSS_MASK]
    prefixes = select_prefixes(batch, wanted)
    new = prefixes.batch
    assert sorted(prefixes.index.tolist()) == wanted.flatten().nonzero()[:, 0].tolist()
    places = new[columns.LOSS_MASK].nonzero().tolist()
    total = 0
    for (row, column), index in zip(places, prefixes.index.tolist(), strict=True):
        number = int(batch[columns.SEQUENCE_IDS].flatten()[index])
        position = int(batch[columns.POSITION_IDS].flatten()[index])
        seen = slice(column - position, column + 1)
        expected = sequences[number][columns.TOKENS][: position + 1]
        assert new[columns.TOKENS][row, seen].tolist() == expected.tolist()
        positions = new[columns.POSITION_IDS][row, seen].tolist()
        assert positions == list(range(position + 1))
    for number in range(len(lengths)):
        of_sequence = wanted & (batch[columns.SEQUENCE_IDS] == number)
        if of_sequence.any():
            total += int(batch[columns.POSITION_IDS][of_sequence].max()) + 1
    assert prefixes.num_tokens == total
