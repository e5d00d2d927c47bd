"""Attention over packed sequences costs what the sequences cost, and computes them."""

import pytest
import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.models import attention, causal_attention
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.sequence_layout import Layout
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.models.families import logp_of_model, packed, tiny_lm

LENGTHS = (7, 1, 23, 12)
HEADS, KV_HEADS, SIZE = 4, 2, 8


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    """Blocks of a window so short that sequences hold several."""
    monkeypatch.setattr(causal_attention, "_BLOCK", 6)
    causal_attention._window_mask.cache_clear()
    yield
    causal_attention._window_mask.cache_clear()


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(
            (1, heads, sum(LENGTHS), SIZE), generator=generator, dtype=torch.float64
        ).requires_grad_()
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


@pytest.fixture
def boundaries():
    return torch.tensor([0, *LENGTHS]).cumsum(0).int()


def dense(states, boundaries, scale, window):
    """Written out: scores of all pairs, those of other sequences at -inf."""
    query, key, value = (x[0] for x in states)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (key, value))
    place = torch.arange(query.shape[1])
    sequence = torch.bucketize(place, boundaries[1:], right=True)
    distance = place[:, None] - place
    seen = (sequence[:, None] == sequence) & (distance >= 0) & (distance < window)
    scores = scale * query @ key.transpose(1, 2)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ value).transpose(0, 1)[None]


@pytest.mark.parametrize("window", [None, 1, 5, 8, 23])
def test_each_sequence_attends_to_itself_alone(states, boundaries, window):
    output = causal_attention.attend_each_sequence(*states, boundaries, 0.3, window)
    expected = dense(states, boundaries, 0.3, window or 1000)
    torch.testing.assert_close(output, expected)
    weight = torch.randn_like(output)
    gradients = torch.autograd.grad((output * weight).sum(), states)
    right = torch.autograd.grad((expected * weight).sum(), states)
    for ours, theirs in zip(gradients, right, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_of_cuda_is_asked_for_the_same(
    states, boundaries, window, monkeypatch
):
    """A stand-in that reads its arguments as torch's documentation has them."""

    def varlen_attn(query, key, value, cu_q, cu_k, max_q, max_k, **kwargs):
        assert query.shape[1:] == (HEADS, SIZE) and key.shape[1:] == (KV_HEADS, SIZE)
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert cu_q.dtype == torch.int32 and max_q == max_k == max(LENGTHS)
        assert kwargs.pop("enable_gqa")
        left, right = kwargs.pop("window_size")
        assert right == 0 and set(kwargs) == {"scale"}
        rows = [x.transpose(0, 1)[None] for x in (query, key, value)]
        # Seen are ``left`` tokens before a token and the token itself.
        seen = 1000 if left == -1 else left + 1
        return dense(rows, cu_q, kwargs["scale"], seen)[0]

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(attention, "fits_varlen", lambda query, value: True)
    module = torch.nn.Module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = attention.packed_attention(
            module,
            *(x.float() for x in states),  # as norms leave them under autocast
            None,
            scaling=0.3,
            sliding_window=window,
            cu_seq_lens_q=boundaries,
            max_length_q=max(LENGTHS),
        )
    expected = dense(states, boundaries, 0.3, window or 1000)
    torch.testing.assert_close(output.double(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "asked",
    [{"softcap": 5.0}, {"s_aux": torch.zeros(4)}, {"position_bias": torch.zeros(1)}],
)
def test_what_is_not_computed_is_refused(states, asked):
    with pytest.raises(ValueError, match=next(iter(asked))):
        attention.packed_attention(torch.nn.Module(), *states, None, **asked)
    with pytest.raises(ValueError, match="attention_mask"):
        attention.packed_attention(torch.nn.Module(), *states, torch.zeros(1))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, 100, (n,), generator=generator) for n in (40, 9, 13)]
    return packed([sequences[:2], sequences[2:]])


def test_no_mask_is_made_and_neither_padding_nor_neighbours_are_looked_at(
    batch, monkeypatch
):
    policy = CausalLMPolicy(tiny_lm("qwen3"))
    assert policy.layout is Layout.ONE_ROW
    calls, tokens = [], []
    real = causal_attention.scaled_dot_product_attention

    def spy(query, key, value, *, attn_mask, is_causal, **kwargs):
        assert attn_mask is None and is_causal
        calls.append((query.shape[2], key.shape[2]))
        return real(query, key, value, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(causal_attention, "scaled_dot_product_attention", spy)
    layer = policy.lm.model.layers[0]
    layer.mlp.register_forward_hook(lambda _, x, out: tokens.append(out.shape[:2]))
    policy(batch)
    # Of two layers each: rows of 49 and 13 tokens hold 62 in all, the rest is padding.
    assert calls == [(40, 40), (9, 9), (13, 13)] * 2
    assert tokens == [(1, 62)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_every_implementation_computes_the_same(family, batch):
    expected = CausalLMPolicy(tiny_lm(family))(batch).logp
    for implementation in ("sdpa", "eager"):
        lm = tiny_lm(family)
        policy = CausalLMPolicy(lm, attn_implementation=implementation)
        assert lm.config._attn_implementation == implementation
        assert policy.layout is Layout.ROWS
        torch.testing.assert_close(policy(batch).logp, expected, atol=1e-4, rtol=0)


def test_a_model_that_keeps_its_window_to_itself_is_not_packed(batch):
    lm = tiny_lm("gemma3_text")  # 8 tokens in the first layer, by config and layer
    lm.model.layers[0].self_attn.sliding_window = None
    policy = CausalLMPolicy(lm)
    assert lm.config._attn_implementation == "sdpa"
    assert policy.layout is Layout.ROWS and lm.config.sliding_window == 8
    torch.testing.assert_close(
        policy(batch).logp[0, 1:40],
        logp_of_model(lm, batch[columns.TOKENS][0, :40]),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize(
    ("family", "implementation", "words"),
    [
        ("gemma2", "sdpa", "leaves out the soft cap"),
        ("llama", "flash_attention_2", "LlamaForCausalLM cannot compute with flash"),
        ("gptj", "flex_attention", "computes with eager whatever is asked for"),
    ],
)
def test_what_a_model_cannot_do_is_refused_in_one_line(family, implementation, words):
    with pytest.raises(ValueError, match=f"^attn_implementation: .*{words}") as refused:
        CausalLMPolicy(tiny_lm(family), attn_implementation=implementation)
    assert "\n" not in str(refused.value)


def test_flash_attention_gets_one_row_and_its_boundaries(batch, monkeypatch):
    """Of several rows transformers' FlashAttention would join the sequences."""
    from transformers import AttentionInterface, AttentionMaskInterface

    seen = []

    def flash(module, query, key, value, attention_mask, scaling, **kwargs):
        seen.append((len(query), kwargs["max_length_k"]))
        bounds = {"cu_seq_lens_q": kwargs["cu_seq_lens_k"]}
        return attention.packed_attention(
            module, query, key, value, None, scaling=scaling, **bounds
        )

    monkeypatch.setitem(
        AttentionInterface._global_mapping, "flash_attention_stub", flash
    )
    monkeypatch.setitem(
        AttentionMaskInterface._global_mapping, "flash_attention_stub", lambda **_: None
    )
    policy = CausalLMPolicy(tiny_lm("llama"))
    expected = policy(batch).logp
    monkeypatch.setattr(
        policy.causal_lm.config, "_attn_implementation_internal", "flash_attention_stub"
    )
    assert attention.knows_boundaries(policy.causal_lm)
    assert torch.equal(policy(batch).logp, expected)
    assert seen == [(1, 40)] * 2


def test_the_setting_reaches_the_model():
    policy = CausalLMPolicy.from_config(
        {"model": small_agent_dir(), "attn_implementation": "eager"}
    )
    assert policy.causal_lm.config._attn_implementation == "eager"
