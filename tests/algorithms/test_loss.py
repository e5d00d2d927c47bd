"""The figures of a micro-batch, on two tokens by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.loss import micro_batch_loss
from rllib_llm_async.batch import columns
from rllib_llm_async.core import RATIO_BIN_EDGES


def test_the_figures_of_a_micro_batch_are_of_its_own_tokens():
    """Two tokens of the agent, of lags 1 and 3: r_d is 1.02 and 1.5, r_s 1.1."""
    mask = torch.tensor([[False, True, True, False]])
    mu = torch.full((1, 4), -2.0)
    old = mu + torch.tensor([[9.0, math.log(1.02), math.log(1.5), 9.0]])
    batch = {
        columns.LOSS_MASK: mask,
        columns.BEHAVIOR_LOGP: mu,
        columns.ADVANTAGES: torch.ones(1, 4),
        columns.VERSIONS: torch.tensor([[-1, 4, 2, -1]]),
        columns.LOSS_DIVISOR: torch.ones(1, 4),
    }
    forward = {
        "action_logp": old + math.log(1.1),
        "entropy": torch.tensor([[0.0, 0.5, 1.5, 0.0]]),
    }
    config = SimpleNamespace(
        eps_ti=1.2,
        eps_stale=1.2,
        eps_stale_low=None,
        dual_clip=None,
        is_cap=None,
        discrepancy_weight="ratio",
        ratio_level="token",
        mask_level=None,
        max_staleness=4,
    )
    found = micro_batch_loss(batch, forward, old, config=config, version=5)
    assert found.kept.tolist() == [[False, True, False, False]]
    assert found.loss.item() == pytest.approx(-1.02 * 1.1)
    assert found.metrics["entropy"].item() == pytest.approx(1.0)
    shares = {
        key: value.item()
        for key, value in found.metrics.items()
        if key.endswith("token_share") and value
    }
    assert shares == {
        "lag_1/token_share": 0.5,
        "lag_3_4/token_share": 0.5,
        "entropy_1e-1/token_share": 0.5,
        "entropy_1/token_share": 0.5,
    }
    bins = found.density.nonzero().tolist()
    for (row, column), r_d in zip(bins, (1.02, 1.5), strict=True):
        assert RATIO_BIN_EDGES[row - 1] <= math.log(r_d) < RATIO_BIN_EDGES[row]
        assert RATIO_BIN_EDGES[column - 1] <= math.log(1.1) < RATIO_BIN_EDGES[column]
