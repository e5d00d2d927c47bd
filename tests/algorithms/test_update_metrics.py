"""Figures of an update are those of all its tokens, however these lie."""

from types import SimpleNamespace

import pytest
import torch

from rllib_llm_async import PPOEWMAAsync, PPOEWMAAsyncConfig
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.minibatches import (
    loss_divisor,
    minibatches,
)
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.update_metrics import (
    UpdateMetrics,
)
from rllib_llm_async.core import NUM_RATIO_BINS, decoupled_ppo_loss
from tests.algorithms.test_minibatches import batch_of, episodes_of


def test_the_effective_sample_size_of_an_update_is_that_of_all_its_tokens():
    """(sum w)^2 / (n sum w^2), however the tokens lie in micro-batches."""
    mu = torch.randn(12, generator=torch.manual_seed(0))
    old, logp = mu + 0.5 * mu.sin(), mu + mu.cos()
    one = torch.ones(12)
    bounds = {"eps_ti": 9.0, "eps_stale": 1.2}
    _, whole = decoupled_ppo_loss(logp, old, mu, one, one.bool(), **bounds)
    metrics = UpdateMetrics(torch.device("cpu"))
    density = torch.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), dtype=torch.int64)
    for part in (slice(0, 2), slice(2, 12)):
        arguments = (x[part] for x in (logp, old, mu, one, one.bool()))
        _, found = decoupled_ppo_loss(*arguments, **bounds)
        output = SimpleNamespace(metrics=found, density=density)
        metrics.add(output, torch.tensor(len(logp[part])))
    means = metrics.means()
    for key in ("effective_sample_size", "total_effective_sample_size"):
        assert whole[key] < 0.95
        assert means[key] == pytest.approx(whole[key].item(), rel=1e-5)


def test_a_mean_over_episodes_is_over_those_of_the_minibatch():
    """They keep the numbers that they have in the batch."""
    batch = batch_of([4, 7, 2, 9, 5, 3, 8])
    for share in minibatches(batch, num_epochs=1, num_per_epoch=3, shuffle_seed=(0,)):
        for normalizer in ("sequences", "episodes"):
            _, total = loss_divisor(share, normalizer)
            assert int(total) == len(episodes_of(share))


def test_the_algorithm_has_the_source_that_it_is_named_after():
    assert PPOEWMAAsyncConfig().old_logprob_source == "ppo_ewma_async"
    assert type(PPOEWMAAsync.get_default_config()) is PPOEWMAAsyncConfig
