"""The KL penalty: values against float64, gradients against the exact divergence."""

import numpy as np
import pytest
import torch

from rllib_llm_async.core import kl_penalty


def test_kl_penalty_equals_float64_and_vanishes_at_the_reference():
    rng = np.random.default_rng(7)
    logp, reference = rng.normal(-1, 0.3, (2, 3, 17))
    mask = rng.random((3, 17)) < 0.6
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


def categorical(seed, size=7):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, size))


@pytest.mark.parametrize(
    ("estimator", "sampled_from", "direction"),
    [("k3", "theta", "forward"), ("unbiased", "behavior", "reverse")],
)
def test_the_mean_gradient_is_that_of_the_named_divergence(
    estimator, sampled_from, direction
):
    """All outcomes of one token, weighted by the probability of sampling each."""
    reference, behavior = categorical(1).log_softmax(-1), categorical(2).log_softmax(-1)
    logits = categorical(3).requires_grad_()
    logp = logits.log_softmax(-1)
    sampled = {"theta": logp.detach(), "behavior": behavior}[sampled_from].exp()
    penalty, value = kl_penalty(
        logp,
        reference,
        torch.ones(7, dtype=torch.bool),
        behavior_logp=behavior if estimator == "unbiased" else None,
        normalizer=1 / sampled,
    )
    (mine,) = torch.autograd.grad(penalty, logits)

    logp = logits.log_softmax(-1)
    exact = {
        "reverse": (logp.exp() * (logp - reference)).sum(),
        "forward": (reference.exp() * (reference - logp)).sum(),
    }
    (expected,) = torch.autograd.grad(exact[direction], logits)
    torch.testing.assert_close(mine, expected, atol=1e-12, rtol=1e-9)
    # The value is that of KL(pi_theta || pi_ref) with both.
    assert penalty.item() == pytest.approx(exact["reverse"].item(), rel=1e-9)
    assert value > 0
