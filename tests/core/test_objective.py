"""The decoupled objective against an independent float64 computation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.core import (
    decoupled_ppo_loss,
    interpolate_logp,
    kl_penalty,
    ratio_metrics_by_lag,
)


def random_batch(seed, rows=3, length=17):
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    mu = -rng.exponential(1.0, shape)
    old = mu + rng.normal(0, 0.1, shape)
    logp = old + rng.normal(0, 0.2, shape)
    advantages = rng.normal(0, 1, shape)
    mask = rng.random(shape) < 0.6
    turns = np.cumsum(rng.random(shape) < 0.3, axis=1) + 100 * np.arange(rows)[:, None]
    return logp, old, mu, advantages, mask, turns


def reference_loss(logp, old, mu, advantages, mask, units, eps_ti, eps_stale, is_cap):
    """Plain float64 loops over the formula of design section 2."""
    tokens = [tuple(index) for index in np.argwhere(mask)]

    def mean_over_unit(difference, token):
        if units is None:
            return difference[token]
        same = [t for t in tokens if units[t] == units[token]]
        return sum(difference[t] for t in same) / len(same)

    total = 0.0
    for token in tokens:
        r_d = math.exp(mean_over_unit(old - mu, token))
        r_s = math.exp(mean_over_unit(logp - old, token))
        if not 1 / eps_ti <= r_d <= eps_ti:
            continue
        weight = 1.0 if is_cap is None else min(r_d, is_cap)
        clipped = min(max(r_s, 2 - eps_stale), eps_stale)
        a = advantages[token]
        total += weight * min(r_s * a, clipped * a)
    return -total / max(len(tokens), 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    level=st.sampled_from(["token", "turn"]),
    eps_ti=st.floats(1.01, 1.5),
    eps_stale=st.floats(1.01, 1.9),
    is_cap=st.sampled_from([None, 0.9, 2.0]),
)
def test_loss_equals_float64_loops(seed, level, eps_ti, eps_stale, is_cap):
    *arrays, turns = random_batch(seed)
    units = turns if level == "turn" else None
    logp, old, mu, advantages, mask = (torch.from_numpy(a) for a in arrays)
    loss, _ = decoupled_ppo_loss(
        logp,
        old,
        mu,
        advantages,
        mask,
        eps_ti=eps_ti,
        eps_stale=eps_stale,
        is_cap=is_cap,
        ratio_level=level,
        unit_ids=None if units is None else torch.from_numpy(units),
    )
    expected = reference_loss(*arrays, units, eps_ti, eps_stale, is_cap)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_gradient_equals_finite_differences():
    *arrays, _ = random_batch(3)
    logp, old, mu, advantages, mask = (torch.from_numpy(a) for a in arrays)
    logp.requires_grad_()
    loss, _ = decoupled_ppo_loss(
        logp, old, mu, advantages, mask, eps_ti=1.2, eps_stale=1.2
    )
    loss.backward()
    step = 1e-5
    for token in [tuple(t) for t in np.argwhere(arrays[4])[:20]]:
        ends = []
        for sign in (+1, -1):
            moved = arrays[0].copy()
            moved[token] += sign * step
            ends.append(reference_loss(moved, *arrays[1:], None, 1.2, 1.2, None))
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert logp.grad[token].item() == pytest.approx(numeric, rel=1e-3, abs=1e-6)
    assert (logp.grad[~mask] == 0).all()


def test_garbage_outside_the_mask_does_not_leak():
    *arrays, _ = random_batch(5)
    logp, old, mu, advantages, mask = (torch.from_numpy(a) for a in arrays)
    clean, _ = decoupled_ppo_loss(
        logp, old, mu, advantages, mask, eps_ti=1.2, eps_stale=1.2
    )
    dirty = [
        torch.where(mask, t, torch.tensor(float("nan"), dtype=t.dtype)).requires_grad_()
        for t in (logp, old, mu, advantages)
    ]
    loss, metrics = decoupled_ppo_loss(*dirty, mask, eps_ti=1.2, eps_stale=1.2)
    loss.backward()
    assert loss.item() == clean.item()
    assert torch.isfinite(dirty[0].grad).all()
    assert all(torch.isfinite(value) for value in metrics.values())


def test_all_masked_gives_zero_gradient_and_says_so():
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    behavior = torch.tensor([-3.0, -5.0])
    loss, metrics = decoupled_ppo_loss(
        logp,
        logp.detach(),
        behavior,
        torch.ones(2),
        torch.ones(2, dtype=torch.bool),
        eps_ti=1.01,
        eps_stale=1.2,
    )
    loss.backward()
    assert loss.item() == 0.0
    assert (logp.grad == 0).all()
    assert metrics["all_masked"] == 1.0 and metrics["train_infer_mask"] == 0.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), alpha=st.floats(0.0, 1.0))
def test_log_linear_proxy_splits_one_ratio_in_fixed_shares(seed, alpha):
    logp, _, mu, *_ = (torch.from_numpy(np.asarray(a)) for a in random_batch(seed))
    prox = interpolate_logp(mu, logp, alpha, space="log")
    total = (logp - mu).float()
    # log r_d = (1 - alpha) log r and log r_s = alpha log r: nothing is told apart.
    torch.testing.assert_close(
        prox - mu.float(), (1 - alpha) * total, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(logp.float() - prox, alpha * total, atol=1e-5, rtol=0)


def test_per_lag_metrics_cover_every_token_once():
    *arrays, _ = random_batch(7)
    logp, old, mu, advantages, mask = (torch.from_numpy(a) for a in arrays)
    lags = torch.from_numpy(np.random.default_rng(0).integers(0, 12, logp.shape))
    metrics = ratio_metrics_by_lag(logp, old, mu, advantages, mask, lags, 1.1, 1.2)
    shares = [v for k, v in metrics.items() if k.endswith("token_share")]
    assert sum(shares).item() == pytest.approx(1.0)
    _, whole = decoupled_ppo_loss(
        logp, old, mu, advantages, mask, eps_ti=1.1, eps_stale=1.2
    )
    kept = sum(
        metrics[key] * metrics[key.replace("train_infer_mask", "token_share")]
        for key in metrics
        if key.endswith("train_infer_mask")
    )
    assert kept.item() == pytest.approx(whole["train_infer_mask"].item())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"eps_ti": 1.0}, "eps_ti must be above 1"),
        ({"eps_stale": 2.5}, "eps_stale in"),
        ({"ratio_level": "word"}, "ratio_level must be one of"),
        ({"ratio_level": "turn"}, "unit_ids belong to"),
    ],
)
def test_bad_arguments_are_named(change, words):
    one = torch.zeros(1)
    arguments = {"eps_ti": 1.1, "eps_stale": 1.2, **change}
    with pytest.raises(ValueError, match=words):
        decoupled_ppo_loss(one, one, one, one, one.bool(), **arguments)


def test_a_normalizer_per_token_weighs_tokens():
    logp, old, mu, advantages, mask, _ = random_batch(5)
    divisor = np.random.default_rng(6).uniform(1, 9, logp.shape)
    tensors = [torch.tensor(x) for x in (logp, old, mu, advantages, mask)]
    loss, _ = decoupled_ppo_loss(
        *tensors, eps_ti=1.2, eps_stale=1.2, normalizer=torch.tensor(divisor)
    )
    scaled = reference_loss(
        logp, old, mu, advantages / divisor, mask, None, 1.2, 1.2, None
    )
    assert float(loss) == pytest.approx(scaled * mask.sum(), rel=1e-5)


def test_kl_penalty_equals_float64_and_vanishes_at_the_reference():
    logp, reference, _, _, mask, _ = random_batch(7)
    log_r = (reference - logp)[mask]
    expected = (np.exp(log_r) - 1 - log_r).mean()
    theta = torch.tensor(logp, requires_grad=True)
    hidden = torch.tensor(np.where(mask, reference, np.nan))
    penalty, mean = kl_penalty(theta, hidden, torch.tensor(mask))
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    assert float(mean) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(penalty, theta)
    expected_gradient = np.where(mask, 1 - np.exp(reference - logp), 0) / mask.sum()
    np.testing.assert_allclose(gradient.numpy(), expected_gradient, atol=1e-6)
    assert kl_penalty(theta, theta, torch.tensor(mask))[0].item() == 0
