"""Packing keeps every sequence whole and in order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows, select_prefixes, take


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


def test_experts_stay_with_their_tokens_and_a_sequence_may_lack_them():
    def sequence(number, length, **further):
        return {
            columns.TOKENS: np.arange(length) + 100 * number,
            columns.POSITION_IDS: np.arange(length),
            columns.SEQUENCE_IDS: np.full(length, number),
            **further,
        }

    def experts(number, length):
        tokens = np.arange(length) + 100 * number
        return tokens[:, None, None] * np.ones((2, 3), np.int16)

    sequences = [
        sequence(0, 5, routed_experts=experts(0, 5).astype(np.int16)),
        sequence(1, 3),
        sequence(2, 7, routed_experts=experts(2, 7).astype(np.int16)),
    ]
    packed = pack_rows(sequences, min_row_tokens=8)
    batch = {key: torch.from_numpy(column) for key, column in packed.items()}
    for rows in (batch, take(batch, torch.tensor([[9, -1, 3], [0, 14, 2]]))):
        routed, ids = rows[columns.ROUTED_EXPERTS], rows[columns.SEQUENCE_IDS]
        assert routed.dtype == torch.int16
        assert routed.shape == (*ids.shape, 2, 3)
        known = (ids == 0) | (ids == 2)
        assert known.any() and not known.all()
        expected = rows[columns.TOKENS].where(known, -1)[..., None, None]
        assert (routed == expected).all()


def test_nothing_else_may_be_lacking():
    whole = {columns.TOKENS: np.arange(3), columns.VERSIONS: np.zeros(3, np.int64)}
    with pytest.raises(KeyError, match="versions"):
        pack_rows([whole, {columns.TOKENS: np.arange(2)}], min_row_tokens=8)


def test_no_sequences_give_a_row_of_padding_in_every_column_of_tokens():
    packed = pack_rows([], min_row_tokens=8)
    assert {column.shape for column in packed.values()} == {(1, 2)}
    assert packed.keys() >= {columns.TOKENS, columns.VERSIONS, columns.LOSS_MASK}


def test_what_some_sequences_lack_is_marked_there_alone():
    scores = np.array([-1.0, -2.0], np.float32)
    sequences = [
        {columns.TOKENS: np.arange(2), columns.SCORED_OLD_LOGP: scores},
        {columns.TOKENS: np.arange(3)},
    ]
    packed = pack_rows(sequences, min_row_tokens=4)[columns.SCORED_OLD_LOGP]
    np.testing.assert_array_equal(packed, [[np.nan] * 3, [-1.0, -2.0, 0.0]])
    del sequences[1][columns.TOKENS]
    with pytest.raises(KeyError):
        pack_rows([sequences[0], sequences[1]], min_row_tokens=4)
