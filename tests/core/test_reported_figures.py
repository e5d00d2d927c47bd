"""The figures beside the loss are of the tokens that they are named after."""

import numpy as np
import pytest
import torch

from rllib_llm_async.core import decoupled_ppo_loss, ratio_metrics_by_lag
from tests.core.test_objective import random_batch


@pytest.mark.parametrize("max_lag", range(12))
def test_no_lag_up_to_the_bound_is_left_out(max_lag):
    *arrays, _ = random_batch(7)
    arguments = [torch.from_numpy(a) for a in arrays]
    lags = np.random.default_rng(0).integers(0, max_lag + 1, arrays[0].shape)
    metrics = ratio_metrics_by_lag(
        *arguments,
        lags=torch.from_numpy(lags),
        max_lag=max_lag,
        eps_ti=1.1,
        eps_stale=1.2,
    )
    shares = [v for k, v in metrics.items() if k.endswith("token_share")]
    assert sum(shares).item() == pytest.approx(1.0)


def test_the_loss_that_is_reported_is_the_one_that_is_minimised():
    *arrays, _ = random_batch(11)
    loss, metrics = decoupled_ppo_loss(
        *(torch.from_numpy(a) for a in arrays), eps_ti=1.1, eps_stale=1.2
    )
    assert metrics["train_infer_mask"] < 1
    assert metrics["policy_loss"].item() == pytest.approx(loss.item())
