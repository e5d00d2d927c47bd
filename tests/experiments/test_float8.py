"""Engines of the hard regimes hold what float8 can hold, and nobody else does."""

import torch

from experiments.float8 import float8_weights, rounded_rows
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.small_agent import small_agent_dir


def test_a_row_keeps_its_largest_element_and_three_bits_of_mantissa():
    torch.manual_seed(0)
    matrix = torch.randn(64, 256) * torch.logspace(-3, 3, 64)[:, None]
    matrix[5] = 0.0
    rounded = rounded_rows(matrix)
    error = (rounded - matrix).abs()
    normal = matrix.abs() > matrix.abs().amax(1, keepdim=True) / 448 * 2**-6
    assert (error[normal] <= matrix.abs()[normal] / 16 * (1 + 1e-5)).all()
    assert error[normal].max() > 0 and not rounded[5].any()
    largest = matrix.abs().argmax(1, keepdim=True)
    kept = rounded.gather(1, largest) / matrix.gather(1, largest)
    torch.testing.assert_close(kept[torch.arange(64) != 5], torch.ones(63, 1))
    assert len((rounded[0] / rounded[0].abs().max()).unique()) < 256


def test_linear_layers_are_rounded_while_it_is_open():
    policy = CausalLMPolicy(load_causal_lm(small_agent_dir()))
    exact = dict(policy.inference_weights())
    with float8_weights():
        rounded = dict(policy.inference_weights())
    assert rounded.keys() == exact.keys()
    changed = {name for name in exact if not torch.equal(exact[name], rounded[name])}
    assert changed and all("proj" in name for name in changed)
    assert changed == {n for n in exact if exact[n].dim() == 2 and "embed" not in n}
    assert all(
        torch.equal(tensor, exact[name]) for name, tensor in policy.inference_weights()
    )
