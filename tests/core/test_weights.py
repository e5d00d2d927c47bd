"""EWMA, snapshots and token log-probabilities."""

import math

import pytest
import torch

from rllib_llm_async.core import (
    EWMAWeights,
    interpolate_logp,
    staleness_alpha,
    token_logprobs,
)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999999])
def test_ewma_equals_its_closed_form(decay):
    versions = [torch.randn(5, dtype=torch.float64) for _ in range(7)]
    ewma = EWMAWeights({"w": versions[0]}, decay)
    for version in versions[1:]:
        ewma.update({"w": version})
    weights = [decay ** (len(versions) - 1 - i) for i in range(len(versions))]
    expected = sum(w * v for w, v in zip(weights, versions, strict=True)) / sum(weights)
    torch.testing.assert_close(ewma.parameters["w"], expected, atol=1e-9, rtol=1e-9)
    assert ewma.total_weight == pytest.approx(sum(weights))


def test_ewma_of_bf16_moves_by_tiny_steps():
    start = torch.ones(3, dtype=torch.bfloat16)
    ewma = EWMAWeights({"w": start}, 0.99)
    for _ in range(500):
        ewma.update({"w": start + 0.0078125})
    # mean = 1 + 2^-7 (1 - share of the first version). A bfloat16 accumulator, whose
    # steps near 1 are 2^-7, stays at 1 for good: 0.0078 off.
    weights = [0.99**age for age in range(500, -1, -1)]
    expected = 1 + 0.0078125 * (1 - weights[0] / sum(weights))
    assert ewma.parameters["w"][0].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_ewma_of_bf16_equals_float64(decay):
    versions = [torch.randn(50).bfloat16() for _ in range(20)]
    ewma = EWMAWeights({"w": versions[0]}, decay)
    for version in versions[1:]:
        ewma.update({"w": version})
    weights = [decay ** (len(versions) - 1 - i) for i in range(len(versions))]
    expected = sum(
        w * v.double() for w, v in zip(weights, versions, strict=True)
    ) / sum(weights)
    torch.testing.assert_close(
        ewma.parameters["w"].double(), expected, atol=1e-6, rtol=1e-6
    )


def test_ewma_and_its_state_take_named_parameters_and_are_copies():
    module = torch.nn.Linear(2, 1)
    ewma = EWMAWeights(module.named_parameters(), 0.5)
    state = ewma.state_dict()
    with torch.no_grad():
        module.weight += 1.0
    ewma.update(module.named_parameters())
    moved = ewma.parameters["weight"] - state["parameters"]["weight"]
    # W = 0.5 + 1: mean moves by 1 / 1.5; the state taken before does not follow.
    assert moved.flatten().tolist() == pytest.approx([2 / 3, 2 / 3])
    ewma.reset(module.named_parameters())
    assert torch.equal(ewma.parameters["weight"], module.weight)


def test_a_module_of_half_precision_runs_under_averages_in_its_own():
    module = torch.nn.Linear(2, 1, bias=False).bfloat16()
    torch.nn.init.ones_(module.weight)
    ewma = EWMAWeights(module.named_parameters(), 0.5)
    torch.nn.init.zeros_(module.weight)
    ewma.update(module.named_parameters())
    out = ewma.forward_under(module, torch.ones(2, dtype=torch.bfloat16))
    # W = 0.5 + 1 leaves a third of the first version: 1/3 + 1/3, in 8 bits.
    assert out.dtype == torch.bfloat16 and out.item() == pytest.approx(2 / 3, rel=4e-3)
    assert ewma.parameters["weight"].dtype == torch.float32


def test_ewma_reset_forgets_and_state_dict_restores():
    ewma = EWMAWeights({"w": torch.zeros(2)}, 0.5)
    ewma.update({"w": torch.ones(2)})
    saved = {**ewma.state_dict(), "parameters": {"w": ewma.parameters["w"].clone()}}
    ewma.reset({"w": torch.full((2,), 7.0)})
    assert ewma.total_weight == 1.0 and ewma.parameters["w"].tolist() == [7.0, 7.0]
    ewma.load_state_dict(saved)
    assert ewma.total_weight == 1.5
    assert ewma.parameters["w"].tolist() == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs_and_gradients_equal_log_softmax(chunk_tokens, temperature):
    hidden = torch.randn(11, 6, requires_grad=True)
    weight = torch.randn(13, 6, requires_grad=True)
    targets = torch.randint(0, 13, (11,))
    scale = torch.randn(11)
    logp, entropy = token_logprobs(
        hidden,
        weight,
        targets,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        with_entropy=True,
    )
    gradients = torch.autograd.grad((logp * scale).sum(), (hidden, weight))
    logits = (hidden @ weight.T).double() / temperature
    full = logits.log_softmax(-1)
    expected = full[torch.arange(11), targets]
    expected_gradients = torch.autograd.grad((expected * scale).sum(), (hidden, weight))
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        entropy.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5
    )
    for ours, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


def test_staleness_alpha_by_hand():
    versions = torch.tensor([10, 8, 6, 9])
    # current 10, proximal 9: (10 - 9) / (10 - v), 0 for a token that is not stale
    assert staleness_alpha(versions, 9, 10).tolist() == [0.0, 0.5, 0.25, 1.0]


def test_weights_of_another_shape_are_not_broadcast():
    ewma = EWMAWeights({"w": torch.zeros(3)}, 0.5)
    for change in (ewma.update, ewma.reset):
        with pytest.raises(ValueError, match="shape of 'w' differs"):
            change({"w": torch.ones(1)})


def test_an_alpha_that_is_no_number_is_refused():
    zeros = torch.zeros(2)
    for alpha in (math.nan, -0.1, torch.tensor([0.5, math.nan])):
        with pytest.raises(ValueError, match="alpha must lie in"):
            interpolate_logp(zeros, zeros, alpha, space="log")
