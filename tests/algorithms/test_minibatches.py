"""Shares of a batch: every row once per epoch, as many shares as asked for."""

import pytest
import torch

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    minibatches,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    TokenMeans,
)
from rllib_llm_async.batch import columns


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
