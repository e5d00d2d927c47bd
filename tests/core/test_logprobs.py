"""Log-probabilities through any head, chunk by chunk."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from rllib_llm_async.core import head_logprobs, token_logprobs
from rllib_llm_async.core.logprobs import logit_chunk_tokens
from tests.core import logits_memory


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_values_and_gradients_through_any_head_equal_log_softmax(chunk_tokens):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, generator=generator, requires_grad=True)
    weight = torch.randn(13, 6, generator=generator, requires_grad=True)
    bias = torch.randn(13, generator=generator, requires_grad=True)
    scale = torch.randn(11, generator=generator)
    targets = torch.randint(0, 13, (11,), generator=generator)
    rows = []

    def soft_capped(chunk):
        rows.append(len(chunk))
        return 3.0 * torch.tanh((chunk @ weight.T + bias) / 3.0)

    logp, entropy = head_logprobs(
        hidden,
        soft_capped,
        targets,
        temperature=0.7,
        chunk_tokens=chunk_tokens,
        with_entropy=True,
    )
    assert max(rows) == min(chunk_tokens, 11)
    gradients = torch.autograd.grad((logp * scale).sum(), (hidden, weight, bias))
    assert sum(rows) == 2 * 11  # Once more in the backward pass.

    full = (soft_capped(hidden).double() / 0.7).log_softmax(-1)
    expected = full[torch.arange(11), targets]
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        entropy.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5
    )
    for ours, right in zip(
        gradients,
        torch.autograd.grad((expected * scale).sum(), (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(ours, right, atol=1e-4, rtol=1e-4)


def test_what_a_head_rules_out_has_no_entropy():
    def head(hidden):
        return torch.tensor([0.0, -math.inf, 0.0]).expand(len(hidden), 3)

    _, entropy = head_logprobs(
        torch.zeros(2, 4), head, torch.tensor([0, 2]), with_entropy=True
    )
    assert entropy.tolist() == pytest.approx([math.log(2)] * 2)
    with pytest.raises(ValueError, match="need positive"):
        head_logprobs(
            torch.zeros(2, 4), head, torch.tensor([0, 2]), temperature=math.nan
        )


@pytest.fixture(scope="module")
def peaks():
    """By case; all are measured by one process."""
    output = subprocess.check_output(
        [sys.executable, logits_memory.__file__],
        env={**os.environ, **logits_memory.MEMORY_ENVIRONMENT},
    )
    return json.loads(output)


@pytest.mark.thorough
@pytest.mark.parametrize("case", logits_memory.CASES)
def test_the_peak_of_memory_keeps_to_the_budget(peaks, case):
    assert peaks[case] <= 1.2 * logits_memory.MEMORY_BYTES
    # Nor is it so small that more tokens would have fitted.
    if "backward" in case:
        assert peaks[case] >= 0.7 * logits_memory.MEMORY_BYTES


def test_chunks_fill_the_budget():
    """By [tokens, vocabulary], at the peak of the way back; hidden states are small."""

    def chunk_tokens(dtype, after=lambda logits: logits, memory_bytes=10**9):
        weight = torch.randn(10_000, 4, dtype=dtype)
        return logit_chunk_tokens(
            memory_bytes, lambda hidden: after(hidden @ weight.T), weight[:1]
        )

    def bytes_of_a_logit(dtype, after=lambda logits: logits):
        return 10**9 / (10_000 * chunk_tokens(dtype, after))

    # The logits and their gradient, in bfloat16 that rounded as well: 2 + 4 + 2.
    for dtype, expected in (
        (torch.float32, 8),
        (torch.bfloat16, 8),
        (torch.float64, 16),
    ):
        assert bytes_of_a_logit(dtype) == pytest.approx(expected, rel=0.01)
    assert bytes_of_a_logit(torch.float32, lambda x: x * 0.3) == pytest.approx(
        12, rel=0.34
    )
    assert bytes_of_a_logit(
        torch.float32, lambda x: 3.0 * torch.tanh(x / 3.0)
    ) == pytest.approx(16, rel=0.3)
    assert chunk_tokens(torch.float32, memory_bytes=1) == 1


def test_a_padded_batch_is_its_tokens_in_a_row():
    hidden, weight = torch.randn(2, 5, 6), torch.randn(13, 6)
    targets = torch.randint(0, 13, (2, 5))
    padded = token_logprobs(hidden, weight, targets, chunk_tokens=3, with_entropy=True)
    row = token_logprobs(
        hidden.view(10, 6), weight, targets.view(10), chunk_tokens=3, with_entropy=True
    )
    for ours, right in zip(padded, row, strict=True):
        assert torch.equal(ours, right.view(2, 5))
    with pytest.raises(ValueError, match=r"got \(2, 5, 6\) and \(5,\)"):
        token_logprobs(hidden, weight, targets[0])


def test_float64_stays_float64():
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64) for n in (9, 13))
    targets = torch.arange(9)
    hidden.requires_grad_()
    logp, entropy = token_logprobs(hidden, weight, targets, with_entropy=True)
    full = (hidden @ weight.T).log_softmax(-1)
    torch.testing.assert_close(logp, full[torch.arange(9), targets])
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1))
    assert torch.autograd.gradcheck(
        lambda h: token_logprobs(h, weight, targets, chunk_tokens=4, temperature=0.7),
        hidden,
    )
