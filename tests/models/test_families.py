"""Log-probabilities of many model families, against plain transformers."""

import pytest
import torch
from safetensors import safe_open

from rllib_llm_async.batch import columns
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.sequence_layout import Layout
from tests.models.families import (
    FAMILIES,
    SIXTEEN_TOKENS,
    logp_of_model,
    packed,
    tiny_lm,
)

pytestmark = pytest.mark.thorough

#: Where what a sequence leaves behind would reach the next in its row.
ONE_SEQUENCE_PER_ROW = {
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "falcon_h1",
    "lfm2",
    "gpt_oss",  # Its masks do not see position ids, and it has sinks.
    "llama4_text",  # Chunked attention.
}
#: Where transformers masks what belongs to other sequences.
MASKED_ROWS = {"gemma2"}  # Soft-capped scores.
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 100, (n,), generator=generator) for n in (50, 9, 31, 17)]


def test_log_probabilities_and_gradients_are_those_of_the_model(family, sequences):
    policy = CausalLMPolicy(tiny_lm(family), logits_memory_bytes=SIXTEEN_TOKENS)
    if family in ONE_SEQUENCE_PER_ROW:
        assert policy.layout is Layout.SEQUENCE_PER_ROW
    else:
        assert policy.layout is (
            Layout.ROWS if family in MASKED_ROWS else Layout.ONE_ROW
        )
    weight = torch.linspace(-1.0, 1.0, 103)

    batch = packed([sequences[:2], sequences[2:]])
    logp = policy(batch).logp[batch[columns.LOSS_MASK]]
    (logp * weight).sum().backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters()}

    expected = torch.cat([logp_of_model(policy.lm, s) for s in sequences])
    policy.zero_grad()
    (expected * weight).sum().backward()

    torch.testing.assert_close(logp, expected, **TOLERANCE)
    for name, parameter in policy.named_parameters():
        size = parameter.grad.abs().max().clamp(min=1.0)
        error = (gradients[name] - parameter.grad).abs().max() / size
        assert error < 1e-4, name


def test_a_pass_under_other_weights_is_that_of_a_model_with_these(family, sequences):
    policy, other = CausalLMPolicy(tiny_lm(family)), tiny_lm(family, seed=1)
    weights = CausalLMPolicy(other).trainable_parameters()
    batch = packed([sequences[:2], sequences[2:]])
    logp = policy.score(batch, weights, max_tokens=64)
    with torch.no_grad():
        expected = torch.cat([logp_of_model(other, s) for s in sequences])
        own = torch.cat([logp_of_model(policy.lm, s) for s in sequences])
    torch.testing.assert_close(logp[batch[columns.LOSS_MASK]], expected, **TOLERANCE)
    assert (own - expected).abs().max() > 0.1


def test_a_snapshot_in_the_compute_dtype_is_what_a_pass_computes_with(
    family, sequences
):
    policy = CausalLMPolicy(tiny_lm(family), compute_dtype=torch.bfloat16)
    batch = packed([sequences[:2], sequences[2:]])
    snapshot = {
        name: weight.bfloat16() if weight.dim() > 1 else weight
        for name, weight in policy.trainable_parameters().items()
    }
    own = policy.score(batch, None, max_tokens=1000)
    assert torch.equal(policy.score(batch, snapshot, max_tokens=1000), own)
    exact = CausalLMPolicy(tiny_lm(family)).score(batch, None, max_tokens=1000)
    assert not torch.equal(own, exact)


def test_what_is_published_is_what_a_checkpoint_holds(family, tmp_path):
    lm = tiny_lm(family)
    lm.save_pretrained(tmp_path)
    weights = dict(CausalLMPolicy(lm).inference_weights())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(weights)
        for name, weight in weights.items():
            assert torch.equal(file.get_tensor(name), weight), name


def test_gradients_to_replaced_weights_are_computed_with_them(sequences):
    # The backward pass computes the head anew, after the weights are put back.
    policy, other = CausalLMPolicy(tiny_lm("gemma2")), tiny_lm("gemma2", seed=1)
    other.set_attn_implementation("eager")  # with the soft cap
    weights = {f"lm.{n}": p for n, p in other.named_parameters()}
    batch = packed([sequences[:1]])
    torch.func.functional_call(policy, weights, (batch,)).logp.sum().backward()
    gradients = {n: p.grad.clone() for n, p in other.named_parameters()}
    other.zero_grad()
    logp_of_model(other, sequences[0]).sum().backward()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, atol=1e-3, rtol=1e-4, msg=name
        )
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("family", ["qwen3", "qwen3_next"])
def test_rows_of_padding_alone_give_zeros(family):
    policy = CausalLMPolicy(tiny_lm(family))
    batch = packed([[torch.zeros(1, dtype=torch.int64)]] * 2)
    assert policy(batch, with_entropy=True).logp.tolist() == [[0.0], [0.0]]


def test_a_pass_over_sequences_in_rows_of_their_own_stays_within_its_budget(
    sequences, monkeypatch
):
    policy = CausalLMPolicy(tiny_lm("lfm2"))
    decoder, shapes = policy.lm.model, []
    forward = decoder.forward
    monkeypatch.setattr(
        decoder,
        "forward",
        lambda **kwargs: shapes.append(kwargs["input_ids"].shape) or forward(**kwargs),
    )
    # By hand: rows of 59 and 48 tokens, padded to 59, so 118 in a pass. Two of 50 and
    # 31 fit (100), 17 and 9 are shorter than half of 50: a pass of their own.
    policy(packed([sequences[:2], sequences[2:]]))
    assert shapes == [(2, 50), (2, 17)]


def test_sequences_beyond_a_rotary_embedding_that_depends_on_them_are_refused():
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    lm = tiny_lm(
        "phi3",
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            **factors,
        },
    )
    policy = CausalLMPolicy(lm)
    tokens = torch.arange(3, 67)
    policy(packed([[tokens]]))
    with pytest.raises(ValueError, match="set max_model_len to at most 64"):
        policy(packed([[torch.arange(3, 68)]]))


def test_sequences_beyond_a_window_that_an_engine_takes_otherwise_are_refused():
    policy = CausalLMPolicy(tiny_lm("cohere2"))  # of 64 tokens, 65 in vLLM
    policy(packed([[torch.arange(3, 67)]]))
    with pytest.raises(
        ValueError, match=r"sliding window .* max_model_len to at most 64"
    ):
        policy(packed([[torch.arange(3, 68)]]))


@pytest.mark.parametrize("family", ["gemma2", "vaultgemma"])
def test_attention_scores_are_capped_as_in_an_engine(family, sequences):
    # PyTorch's SDPA, the default, knows no cap.
    caps = {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}
    capped = tiny_lm(family, **caps)
    capped.set_attn_implementation("eager")
    policy = CausalLMPolicy(tiny_lm(family, **caps))
    batch = packed([sequences[:2], sequences[2:]])
    logp = policy.score(batch, None, max_tokens=1000)[batch[columns.LOSS_MASK]]
    with torch.no_grad():
        expected = torch.cat([logp_of_model(capped, s) for s in sequences])
        left_out = tiny_lm(family, **caps)
        without = torch.cat([logp_of_model(left_out, s) for s in sequences])
    torch.testing.assert_close(logp, expected, **TOLERANCE)
    assert (without - expected).abs().max() > 0.1
