"""Shares of a batch: every row once per epoch, as many shares as asked for."""

import pytest
import torch

from rllib_llm_async import columns
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    minibatches,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    TokenMeans,
)


def batch_of(rows):
    numbers = torch.arange(rows)[:, None].expand(rows, 3)
    return {
        columns.TOKENS: numbers.clone(),
        columns.LOSS_MASK: torch.ones(rows, 3, dtype=torch.bool),
    }


@pytest.mark.parametrize("seed", [None, (3, 0)])
def test_every_row_comes_once_per_epoch(seed):
    shares = list(
        minibatches(batch_of(7), num_epochs=2, num_per_epoch=3, shuffle_seed=seed)
    )
    assert [len(share[columns.TOKENS]) for share in shares] == [3, 2, 2, 3, 2, 2]
    epochs = [
        torch.cat([share[columns.TOKENS][:, 0] for share in shares[i : i + 3]]).tolist()
        for i in (0, 3)
    ]
    assert [sorted(epoch) for epoch in epochs] == [[*range(7)]] * 2
    if seed is None:
        assert epochs == [[*range(7)]] * 2
    else:
        assert epochs[0] != epochs[1]
        again = minibatches(
            batch_of(7), num_epochs=1, num_per_epoch=1, shuffle_seed=seed
        )
        assert next(again)[columns.TOKENS][:, 0].tolist() == epochs[0]


def test_a_share_without_rows_has_no_tokens_to_train_on():
    shares = list(
        minibatches(batch_of(1), num_epochs=1, num_per_epoch=2, shuffle_seed=None)
    )
    assert [int(share[columns.LOSS_MASK].sum()) for share in shares] == [3, 0]


def test_means_weigh_micro_batches_by_their_tokens():
    means = TokenMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)}, torch.tensor(3))
    means.add({"a": torch.tensor(3.0)}, torch.tensor(1))
    means.add({"c": torch.tensor(9.0)}, torch.tensor(0))
    # (1 * 3 + 3 * 1) / 4; nothing is known of c.
    assert means.means() == {"a": 1.5, "b": 5.0}
