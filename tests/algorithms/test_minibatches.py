"""Shares of a batch: every episode once per epoch, as many shares as asked for."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    deal,
    minibatches,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    TokenMeans,
)
from rllib_llm_async.batch import columns


def batch_of(lengths):
    """One sequence in each row, all but its first token the agent's."""
    rows, length = len(lengths), max(lengths)
    positions = torch.arange(length).expand(rows, -1)
    inside = positions < torch.tensor(lengths)[:, None]
    numbers = torch.arange(rows)[:, None].expand(-1, length)
    return {
        columns.TOKENS: numbers.where(inside, 0),
        columns.POSITION_IDS: positions.where(inside, 0),
        columns.SEQUENCE_IDS: numbers.where(inside, -1),
        columns.LOSS_MASK: inside & (positions > 0),
        columns.OLD_LOGP: torch.randn(rows, length),
    }


def episodes_of(share):
    return share[columns.SEQUENCE_IDS][share[columns.LOSS_MASK]].unique().tolist()


@pytest.mark.parametrize("seed", [None, (3, 0)])
def test_every_episode_comes_once_per_epoch(seed):
    batch = batch_of([3] * 7)
    shares = list(minibatches(batch, num_epochs=2, num_per_epoch=3, shuffle_seed=seed))
    drawn = [episodes_of(share) for share in shares]
    assert [sorted(map(len, drawn[i : i + 3])) for i in (0, 3)] == [[2, 2, 3]] * 2
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(itertools.chain(*epoch)) == [*range(7)]
    assert (drawn[:3] == drawn[3:]) == (seed is None)
    again = minibatches(batch, num_epochs=1, num_per_epoch=3, shuffle_seed=seed)
    assert [episodes_of(share) for share in again] == drawn[:3]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 500), max_size=60),
    num_shares=st.integers(1, 9),
    seed=st.none() | st.integers(0, 1000),
)
def test_shares_are_alike_in_episodes_and_in_tokens(lengths, num_shares, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    shares = deal(np.array(lengths, np.int64), num_shares, rng)
    assert len(shares) == num_shares
    assert sorted(np.concatenate(shares)) == [*range(len(lengths))]
    numbers = [len(share) for share in shares]
    assert max(numbers) - min(numbers) <= 1
    tokens = [sum(lengths[n] for n in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


def test_a_minibatch_holds_its_episodes_columns_and_nothing_else():
    """Several short ones in a row; what has nothing to train on is not computed."""
    batch = batch_of([90, 20, 30, 40, 10, 25])
    batch[columns.LOSS_MASK][2] = False  # dropped
    batch[columns.LOSS_MASK][3, 30:] = False  # and what follows has no loss
    shares = [*minibatches(batch, num_epochs=1, num_per_epoch=2, shuffle_seed=(0,))]
    assert sorted(itertools.chain(*map(episodes_of, shares))) == [0, 1, 3, 4, 5]
    for share in shares:
        assert len(share[columns.TOKENS]) < len(episodes_of(share))
        for number in episodes_of(share):
            own = share[columns.SEQUENCE_IDS] == number
            original = batch[columns.SEQUENCE_IDS] == number
            original &= batch[columns.POSITION_IDS] < (30 if number == 3 else 90)
            for key, column in share.items():
                assert torch.equal(column[own], batch[key][original]), key
        padding = share[columns.SEQUENCE_IDS] < 0
        assert not share[columns.LOSS_MASK][padding].any()
        assert not share[columns.OLD_LOGP][padding].any()


def test_a_share_without_episodes_has_no_tokens_to_train_on():
    shares = list(
        minibatches(batch_of([4]), num_epochs=1, num_per_epoch=2, shuffle_seed=None)
    )
    assert [int(share[columns.LOSS_MASK].sum()) for share in shares] == [3, 0]


def test_means_of_a_lag_weigh_micro_batches_by_the_lags_tokens():
    """3 of 4 tokens of the first are of lag 1, 1 of 2 of the second, 0 of 2 after."""
    means = TokenMeans()
    for mask_share, lag_mask, lag_share, clipped, tokens in (
        (0.5, 2 / 3, 3 / 4, 1 / 2, 4),
        (1.0, 1.0, 1 / 2, 0.0, 2),
    ):
        metrics = {
            "train_infer_mask": mask_share,
            "ppo_clip_fraction": clipped,
            "lag_1/train_infer_mask": lag_mask,
            "lag_1/ppo_clip_fraction": clipped,
            "lag_1/token_share": lag_share,
        }
        means.add(
            {k: torch.tensor(v) for k, v in metrics.items()}, torch.tensor(tokens)
        )
    nothing_kept = {"train_infer_mask": 0.0, "ppo_clip_fraction": 0.0}
    means.add({k: torch.tensor(v) for k, v in nothing_kept.items()}, torch.tensor(2))
    assert means.means() == pytest.approx(
        {
            "train_infer_mask": (2 + 2 + 0) / 8,
            "ppo_clip_fraction": (1 + 0) / (2 + 2),  # of the tokens that are kept
            "lag_1/train_infer_mask": (2 + 1) / (3 + 1),
            "lag_1/ppo_clip_fraction": (1 + 0) / (2 + 1),
            "lag_1/token_share": (3 + 1) / 8,
        }
    )


def test_means_weigh_micro_batches_by_their_tokens():
    means = TokenMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, torch.tensor(3))
    means.add({"a": torch.tensor(3.0)}, torch.tensor(1))
    means.add({"c": torch.tensor(9.0)}, torch.tensor(0))
    # (1 * 3 + 3 * 1) / 4; nothing is known of c.
    assert means.means() == {"a": 1.5, "b": 5.0}
