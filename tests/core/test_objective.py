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
    ratio_metrics_by_entropy,
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


def reference_loss(
    logp,
    old,
    mu,
    advantages,
    mask,
    units,
    eps_ti,
    eps_stale,
    is_cap=None,
    *,
    low=None,
    dual_clip=None,
    weighted=True,
    mask_units="as units",
):
    """Plain float64 loops over the formula of design section 2.

    Returns the loss, and the tokens kept and clipped.
    """
    tokens = [tuple(index) for index in np.argwhere(mask)]
    if isinstance(mask_units, str):
        mask_units = units

    def mean_over_unit(difference, token, units):
        if units is None:
            return difference[token]
        same = [t for t in tokens if units[t] == units[token]]
        return sum(difference[t] for t in same) / len(same)

    total, kept, cut = 0.0, [], []
    for token in tokens:
        if (
            not 1 / eps_ti
            <= math.exp(mean_over_unit(old - mu, token, mask_units))
            <= eps_ti
        ):
            continue
        r_d = math.exp(mean_over_unit(old - mu, token, units))
        r_s = math.exp(mean_over_unit(logp - old, token, units))
        weight = r_d if is_cap is None else min(r_d, is_cap)
        clipped = min(max(r_s, 2 - (low or eps_stale)), eps_stale)
        a = advantages[token]
        surrogate = min(r_s * a, clipped * a)
        if dual_clip and a < 0:
            surrogate = max(surrogate, dual_clip * a)
        kept.append(token)
        if surrogate != r_s * a:
            cut.append(token)
        total += (weight if weighted else 1.0) * surrogate
    return -total / max(len(tokens), 1), kept, cut


def test_the_reference_itself_by_hand():
    """One token: r_d = 1.1, r_s = 1.5, A = 2, clip at 1.2: 1.1 * 1.2 * 2 = 2.64."""
    one = np.zeros(1)
    ratios = one + math.log(1.5) + math.log(1.1), one + math.log(1.1), one
    mask = np.ones(1, bool)
    loss, _, cut = reference_loss(*ratios, one + 2, mask, None, 1.2, 1.2)
    assert loss == pytest.approx(-2.64) and cut == [(0,)]
    # A = -2 takes the unclipped 1.1 * 1.5 * -2 = -3.3, a dual clip of 1.3 cuts at -2.86
    loss, _, cut = reference_loss(*ratios, one - 2, mask, None, 1.2, 1.2)
    assert loss == pytest.approx(3.3) and cut == []
    loss, *_ = reference_loss(*ratios, one - 2, mask, None, 1.2, 1.2, dual_clip=1.3)
    assert loss == pytest.approx(2.86)


LEVELS = st.sampled_from(["token", "turn", "sequence"])


@settings(deadline=None)
@given(
    seed=st.integers(0, 10_000),
    ratio_level=LEVELS,
    mask_level=st.none() | LEVELS,
    eps_ti=st.floats(1.01, 1.5),
    eps_stale=st.floats(1.01, 1.9),
    low=st.none() | st.floats(1.01, 1.9),
    dual_clip=st.none() | st.floats(1.01, 1.5),
    is_cap=st.sampled_from([None, 0.9, 1.05]),
    weight=st.sampled_from(["ratio", "none"]),
)
def test_loss_and_shares_equal_float64_loops(
    seed, ratio_level, mask_level, eps_ti, eps_stale, low, dual_clip, is_cap, weight
):
    *arrays, turns = random_batch(seed)
    rows = np.arange(len(turns))[:, None].repeat(turns.shape[1], axis=1)
    units = {"token": None, "turn": turns, "sequence": rows}
    tensors = [torch.from_numpy(a) for a in arrays]
    as_tensor = {
        k: None if u is None else torch.from_numpy(u) for k, u in units.items()
    }
    loss, metrics = decoupled_ppo_loss(
        *tensors,
        eps_ti=eps_ti,
        eps_stale=eps_stale,
        eps_stale_low=low,
        dual_clip=dual_clip,
        is_cap=is_cap,
        discrepancy_weight=weight,
        ratio_level=ratio_level,
        unit_ids=as_tensor[ratio_level],
        mask_level=mask_level,
        mask_unit_ids=as_tensor[mask_level] if mask_level else None,
    )
    expected, kept, cut = reference_loss(
        *arrays,
        units[ratio_level],
        eps_ti,
        eps_stale,
        is_cap,
        low=low,
        dual_clip=dual_clip,
        weighted=weight == "ratio",
        mask_units=units[mask_level or ratio_level],
    )
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    num_tokens = max(int(arrays[4].sum()), 1)
    shares = {
        "train_infer_mask": len(kept) / num_tokens,
        "ppo_clip_fraction": len(cut) / max(len(kept), 1),
        "active_fraction": (len(kept) - len(cut)) / num_tokens,
    }
    assert {k: metrics[k].item() for k in shares} == pytest.approx(shares)


def test_diagnostics_of_the_discrepancy_equal_float64():
    *arrays, _ = random_batch(11)
    _, metrics = decoupled_ppo_loss(
        *(torch.from_numpy(a) for a in arrays), eps_ti=1.1, eps_stale=1.2
    )
    logp, old, mu, _, mask = arrays
    log_r_d = (old - mu)[mask]
    r_d = np.exp(log_r_d)
    log_r_s = (logp - old)[mask]
    total = np.exp((logp - mu)[mask])
    expected = {
        "discrepancy_log_ratio_abs_mean": np.abs(log_r_d).mean(),
        "discrepancy_ratio_mean": r_d.mean(),
        "discrepancy_log_ratio_square_mean": np.square(log_r_d).mean(),
        "discrepancy_kl": (r_d - 1 - log_r_d).mean(),
        "effective_sample_size": r_d.sum() ** 2 / (len(r_d) * (r_d**2).sum()),
        "staleness_log_ratio_abs_mean": np.abs(log_r_s).mean(),
        "staleness_log_ratio_square_mean": np.square(log_r_s).mean(),
        "total_ratio_mean": total.mean(),
        "total_effective_sample_size": total.sum() ** 2
        / (len(total) * (total**2).sum()),
    }
    assert {k: metrics[k].item() for k in expected} == pytest.approx(expected)


def test_ratios_beyond_all_bounds_leave_finite_metrics():
    logp, old, mu = (torch.full((200,), value) for value in (-1.0, -40.0, -80.0))
    mask = torch.ones(200, dtype=torch.bool)
    _, metrics = decoupled_ppo_loss(
        logp, old, mu, torch.ones(200), mask, eps_ti=1.1, eps_stale=1.2
    )
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["total_effective_sample_size"].item() == pytest.approx(1.0)


def test_no_gradient_reaches_the_old_policy_or_the_weight():
    """sg[w] and pi_old are constants: d loss / d logp is all there is."""
    *arrays, _ = random_batch(12)
    tensors = [torch.from_numpy(a) for a in arrays]
    for tensor in tensors[:4]:
        tensor.requires_grad_()
    loss, _ = decoupled_ppo_loss(*tensors, eps_ti=1.2, eps_stale=1.2)
    loss.backward()
    assert (tensors[0].grad != 0).any()
    assert tensors[1].grad is None and tensors[2].grad is None


@pytest.mark.parametrize("weight", ["ratio", "none"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_token_without_a_usable_probability_is_masked(bad, weight):
    """... and the rest is as if its advantage were 0; Z still counts it."""
    *arrays, _ = random_batch(13)
    logp, old, mu, advantages, mask = (torch.from_numpy(a) for a in arrays)
    token = tuple(mask.nonzero()[4].tolist())
    bounds = {"eps_ti": 1.5, "eps_stale": 1.2, "discrepancy_weight": weight}
    for tensor in (old, mu):
        kept = tensor[token].item()
        tensor[token] = bad
        theta = logp.clone().requires_grad_()
        loss, metrics = decoupled_ppo_loss(theta, old, mu, advantages, mask, **bounds)
        loss.backward()
        tensor[token] = kept
        without = advantages.clone()
        without[token] = 0.0
        expected, _ = decoupled_ppo_loss(logp, old, mu, without, mask, **bounds)
        assert loss.item() == pytest.approx(expected.item())
        assert theta.grad[token] == 0 and theta.grad.isfinite().all()
        assert all(value.isfinite() for value in metrics.values())


def test_a_unit_with_such_a_token_falls_as_a_whole():
    logp = torch.zeros(4)
    mu = torch.tensor([0.0, float("nan"), 0.0, 0.0])
    _, metrics = decoupled_ppo_loss(
        logp,
        logp,
        mu,
        torch.ones(4),
        torch.ones(4, dtype=torch.bool),
        eps_ti=1.1,
        eps_stale=1.2,
        ratio_level="turn",
        unit_ids=torch.tensor([0, 0, 1, 1]),
    )
    assert metrics["train_infer_mask"] == 0.5


def test_a_policy_that_is_not_finite_stays_visible():
    """A NaN of pi_theta must skip the step, not be masked away."""
    logp = torch.tensor([0.0, float("nan")])
    one = torch.ones(2)
    loss, _ = decoupled_ppo_loss(
        logp, one * 0, one * 0, one, one.bool(), eps_ti=1.1, eps_stale=1.2
    )
    assert loss.isnan()


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
            ends.append(reference_loss(moved, *arrays[1:], None, 1.2, 1.2)[0])
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
    total = logp - mu
    assert prox.dtype == torch.float64
    # log r_d = (1 - alpha) log r and log r_s = alpha log r: nothing is told apart.
    torch.testing.assert_close(prox - mu, (1 - alpha) * total, atol=1e-12, rtol=0)
    torch.testing.assert_close(logp - prox, alpha * total, atol=1e-12, rtol=0)
    half = interpolate_logp(mu.bfloat16(), logp.bfloat16(), alpha, space="log")
    assert half.dtype == torch.float32


@pytest.mark.parametrize("stratum", ["lag", "entropy"])
def test_strata_cover_every_token_once(stratum):
    *arrays, _ = random_batch(7)
    arguments = [torch.from_numpy(a) for a in arrays]
    rng, shape = np.random.default_rng(0), arguments[0].shape
    bounds = {"eps_ti": 1.1, "eps_stale": 1.2}
    if stratum == "lag":
        lags = torch.from_numpy(rng.integers(0, 12, shape))
        metrics = ratio_metrics_by_lag(*arguments, lags=lags, **bounds)
    else:
        entropy = torch.from_numpy(10.0 ** rng.uniform(-4, 1, shape))
        entropy[0, 0] = -1e-9  # a certain token's, rounded
        metrics = ratio_metrics_by_entropy(*arguments, entropy=entropy, **bounds)
    shares = [v for k, v in metrics.items() if k.endswith("token_share")]
    assert len(shares) > 3 and min(shares) > 0.0
    assert sum(shares).item() == pytest.approx(1.0)
    _, whole = decoupled_ppo_loss(*arguments, **bounds)
    kept = sum(
        metrics[key] * metrics[key.replace("train_infer_mask", "token_share")]
        for key in metrics
        if key.endswith("train_infer_mask")
    )
    assert kept.item() == pytest.approx(whole["train_infer_mask"].item())


def test_uncertain_tokens_meet_the_bounds_and_certain_ones_do_not():
    old = torch.full((2, 3), -0.5)
    logp = torch.tensor([[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]])
    entropy = torch.tensor([[0.02, 0.02, 0.02], [0.5, 0.5, 2.0]])
    metrics = ratio_metrics_by_entropy(
        *(logp, old, old, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)),
        entropy=entropy,
        eps_ti=1.1,
        eps_stale=1.2,
    )
    clipped = {
        key.split("/")[0]: value.item()
        for key, value in metrics.items()
        if key.endswith("clip_fraction")
    }
    assert clipped == {
        "entropy_0": 0.0,
        "entropy_1e-2": 0.0,
        "entropy_1e-1": 1.0,
        "entropy_1": 1.0,
    }
    assert metrics["entropy_1e-1/token_share"].item() == pytest.approx(2 / 6)
    assert metrics["entropy_0/token_share"].item() == 0.0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"eps_ti": 1.0}, "eps_ti must be above 1"),
        ({"eps_stale": 2.5}, "eps_stale_low .* in \\(1, 2\\)"),
        ({"ratio_level": "word"}, "ratio_level must be one of"),
        ({"ratio_level": "turn"}, "unit_ids belong to ratio_level"),
        ({"mask_level": "turn"}, "unit_ids belong to mask_level"),
        ({"eps_stale_low": 2.0}, r"eps_stale_low .* in \(1, 2\)"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"is_cap": 0.0}, "is_cap must be above 0"),
        ({"is_cap": math.nan}, "is_cap must be above 0"),
        ({"discrepancy_weight": "log"}, "discrepancy_weight must be one of"),
    ],
)
def test_bad_arguments_are_named(change, words):
    one = torch.zeros(1)
    arguments = {"eps_ti": 1.1, "eps_stale": 1.2, **change}
    with pytest.raises(ValueError, match=words):
        decoupled_ppo_loss(one, one, one, one, one.bool(), **arguments)


def of_objective(logp, mask, normalizer):
    others = logp.detach(), logp.detach(), torch.ones_like(logp), mask
    return decoupled_ppo_loss(
        logp, *others, eps_ti=1.2, eps_stale=1.2, normalizer=normalizer
    )[0]


def of_kl(logp, mask, normalizer):
    return kl_penalty(logp, logp.detach() - 0.1, mask, normalizer=normalizer)[0]


def test_a_normalizer_per_token_weighs_tokens():
    logp, old, mu, advantages, mask, _ = random_batch(5)
    divisor = np.random.default_rng(6).uniform(1, 9, logp.shape)
    tensors = [torch.tensor(x) for x in (logp, old, mu, advantages, mask)]
    loss, _ = decoupled_ppo_loss(
        *tensors, eps_ti=1.2, eps_stale=1.2, normalizer=torch.tensor(divisor)
    )
    scaled, *_ = reference_loss(
        logp, old, mu, advantages / divisor, mask, None, 1.2, 1.2
    )
    assert float(loss) == pytest.approx(scaled * mask.sum(), rel=1e-5)


@pytest.mark.parametrize("loss_of", [of_objective, of_kl])
def test_a_normalizer_may_be_0_where_nothing_is_trained(loss_of):
    """Of a row without agent tokens."""
    mask = torch.tensor([[True], [False]]).expand(2, 3)
    logp = torch.full((2, 3), -1.0, requires_grad=True)
    of_row = mask.sum(-1, keepdim=True).expand(2, 3)
    loss, alone = loss_of(logp, mask, of_row), loss_of(logp[:1], mask[:1], of_row[:1])
    assert torch.equal(loss, alone)
    gradient, of_alone = (torch.autograd.grad(x, logp)[0] for x in (loss, alone))
    assert torch.equal(gradient, of_alone)


@pytest.mark.parametrize("number", [int, torch.tensor])
@pytest.mark.parametrize("loss_of", [of_objective, of_kl])
def test_a_batch_without_agent_tokens_has_no_loss(loss_of, number):
    mask = torch.zeros(4, dtype=torch.bool)
    logp = torch.zeros(4, requires_grad=True)
    loss = loss_of(logp, mask, number(0))
    loss.backward()
    assert loss.item() == 0.0 and logp.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize(("factor", "kept"), [(1 - 5e-5, 2), (1 + 5e-5, 0)])
def test_a_bound_near_1_is_not_rounded(factor, kept):
    """1.0001 in float32 is 1.00010002, whose log is larger by 1.7e-4 of itself."""
    log_r_d = torch.tensor([1.0, -1.0]) * math.log(1.0001) * factor
    zeros = torch.zeros(2)
    _, metrics = decoupled_ppo_loss(
        zeros, log_r_d, zeros, zeros, zeros == 0, eps_ti=1.0001, eps_stale=1.2
    )
    assert float(metrics["train_infer_mask"]) == kept / 2
