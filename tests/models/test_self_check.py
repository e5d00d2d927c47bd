"""A policy is its model, without noise, or it is not built."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    LlamaForCausalLM,
)

from rllib_llm_async.batch import columns
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.sequence_layout import Layout
from tests.models.families import (
    COMMON,
    FAMILIES,
    SIXTEEN_TOKENS,
    logp_of_model,
    packed,
    tiny_lm,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(4)
    sequences = [torch.randint(3, 100, (n,), generator=generator) for n in (30, 12, 25)]
    return packed([sequences[:2], sequences[2:]])


def with_forward(family, change):
    """A model of a subclass whose ``forward`` also changes its output."""
    lm = tiny_lm(family)

    class Changed(type(lm)):
        def forward(self, input_ids=None, **kwargs):
            output = super().forward(input_ids, **kwargs)
            output.logits = change(self, input_ids, output.logits)
            return output

    lm.__class__ = Changed
    return lm


def test_what_a_model_does_after_its_head_is_done():
    bias = torch.linspace(-2.0, 2.0, 100)
    lm = with_forward("llama", lambda lm, tokens, logits: 0.5 * logits + bias)
    tokens = torch.arange(3, 40)
    policy = CausalLMPolicy(lm, logits_memory_bytes=SIXTEEN_TOKENS)
    logp = policy(packed([[tokens]])).logp[0, 1:]
    torch.testing.assert_close(logp, logp_of_model(lm, tokens), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize(
    ("compute_dtype", "size"), [(None, 0.01), (torch.bfloat16, 0.1)]
)
def test_logits_that_depend_on_more_than_hidden_states_are_refused(compute_dtype, size):
    ramp = size * torch.linspace(0.0, 1.0, 100)
    lm = with_forward("llama", lambda lm, tokens, x: x + tokens[..., None] % 7 * ramp)
    with pytest.raises(
        ValueError, match=r"^model: Changed is not computed right: .* sequence alone"
    ):
        CausalLMPolicy(lm, compute_dtype=compute_dtype)


class Leaking(nn.Module):
    """Adds the mean of all that stands before in the row, as linear attention may."""

    def __init__(self, inner, share=1.0):
        super().__init__()
        self.inner = inner
        self.share = share

    def forward(self, hidden, *args, **kwargs):
        count = torch.arange(1, hidden.shape[1] + 1)[None, :, None]
        mean = hidden.cumsum(1) / count
        return self.inner(hidden, *args, **kwargs) + self.share * mean.to(hidden)


def test_a_model_whose_rows_leak_gets_one_sequence_per_row(batch):
    lm = tiny_lm("llama")
    lm.model.layers[0].mlp = Leaking(lm.model.layers[0].mlp)
    policy = CausalLMPolicy(lm)
    assert policy.layout is Layout.SEQUENCE_PER_ROW
    logp = policy(batch).logp
    for row, start, length in ((0, 0, 30), (0, 30, 12), (1, 0, 25)):
        tokens = batch[columns.TOKENS][row, start : start + length]
        torch.testing.assert_close(
            logp[row, start + 1 : start + length],
            logp_of_model(lm, tokens),
            atol=1e-5,
            rtol=0.0,
        )


def test_a_model_that_counts_positions_along_the_row_gets_one_sequence_per_row():
    lm = tiny_lm("llama")
    table = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    lm.model.embed_tokens.register_forward_hook(
        lambda _, inputs, embedded: embedded + table[: embedded.shape[1]]
    )
    assert CausalLMPolicy(lm).layout is Layout.SEQUENCE_PER_ROW


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16])
def test_a_small_leak_is_seen_in_every_dtype(compute_dtype):
    lm = tiny_lm("llama")
    lm.model.layers[0].mlp = Leaking(lm.model.layers[0].mlp, share=0.01)
    policy = CausalLMPolicy(lm, compute_dtype=compute_dtype)
    assert policy.layout is Layout.SEQUENCE_PER_ROW


@pytest.mark.parametrize(
    "kind", ["chunked_attention", "minimax_m3_sparse", "heavily_compressed_attention"]
)
def test_attention_that_counts_from_the_start_of_a_row_is_never_packed(kind):
    # No check is as long as its chunks.
    lm = tiny_lm("llama")
    lm.config.layer_types = [kind, "full_attention"]
    assert CausalLMPolicy(lm).layout is Layout.SEQUENCE_PER_ROW


def test_blocks_of_another_sequence_are_not_attended_to():
    """MiniMax-M3 picks blocks of 128 keys: what came second in a row was 2 nats off."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "minimax_m3_vl_text",
            vocab_size=100,
            hidden_size=32,
            intermediate_size=32,
            dense_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rotary_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            index_n_heads=2,
            index_head_dim=8,
            layer_types=["full_attention", "minimax_m3_sparse"],
            mlp_layer_types=["dense", "dense"],
        ),
        dtype=torch.float32,
    ).eval()
    sequences = [torch.randint(3, 100, (n,)) for n in (150, 200)]
    batch = packed([sequences])
    logp = CausalLMPolicy(lm)(batch).logp[0]
    for start, tokens in zip((0, 150), sequences):
        torch.testing.assert_close(
            logp[start + 1 : start + len(tokens)],
            logp_of_model(lm, tokens),
            atol=1e-4,
            rtol=0.0,
        )


def test_a_model_that_cannot_run_is_refused_in_one_line():
    lm = with_forward("llama", lambda lm, tokens, logits: logits @ logits)
    with pytest.raises(ValueError, match=r"^model: Changed cannot run: ") as refused:
        CausalLMPolicy(lm)
    assert "\n" not in str(refused.value)


NOISY = {
    "attention_dropout": ("llama", {"attention_dropout": 0.5}),
    "all of gpt2's": (
        "gpt2",
        {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    ),
    "phi's": ("phi", {"resid_pdrop": 0.5, "embd_pdrop": 0.5}),
    "router jitter": ("mixtral", {"router_jitter_noise": 0.5, "num_local_experts": 4}),
}


@pytest.mark.parametrize("kind", NOISY)
def test_no_pass_is_random_and_training_computes_what_scoring_does(kind, batch):
    family, settings = NOISY[kind]
    lm = tiny_lm(family, **settings).train()
    policy = CausalLMPolicy(lm)
    policy.train()
    lm.train()
    trained = policy(batch).logp.detach()
    policy.train()
    for _ in range(2):
        assert torch.equal(policy.score(batch, None, max_tokens=1000), trained)
    weights = policy.trainable_parameters()
    assert torch.equal(policy.score(batch, weights, max_tokens=1000), trained)


@pytest.mark.parametrize(
    ("family", "dropout"),
    [
        ("llama", "attention_dropout"),
        ("qwen3_next", "attention_dropout"),
        ("falcon", "hidden_dropout"),  # In the layer itself.
    ],
)
def test_gradient_checkpointing_recomputes_without_dropout(
    family, dropout, batch, tmp_path
):
    tiny_lm(family, **{dropout: 0.5}).save_pretrained(tmp_path)
    gradients, num_calls = [], []
    for checkpointing in (False, True):
        calls = []
        lm = load_causal_lm(tmp_path, gradient_checkpointing=checkpointing)
        policy = CausalLMPolicy(lm)
        policy.train()
        norm = next(m for n, m in lm.named_modules() if n.endswith("1.input_layernorm"))
        norm.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        policy(batch).logp.sum().backward()
        gradients.append({n: p.grad for n, p in policy.named_parameters()})
        num_calls.append(len(calls))
    assert num_calls[1] == 2 * num_calls[0] > 0
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_the_temperature_divides_what_the_model_makes_of_its_logits():
    lm, tokens = tiny_lm("gemma2"), torch.arange(3, 60)
    logp = CausalLMPolicy(lm, temperature=0.7)(packed([[tokens]])).logp[0, 1:]
    with torch.no_grad():
        logits = lm(input_ids=tokens[None]).logits[0, :-1] / 0.7
    expected = logits.log_softmax(-1).gather(-1, tokens[1:, None]).squeeze(-1)
    torch.testing.assert_close(logp, expected, atol=1e-4, rtol=0.0)


def test_no_logits_are_kept_for_the_backward_pass(batch):
    lm = tiny_lm("gemma2", vocab_size=1000)
    policy = CausalLMPolicy(lm, logits_memory_bytes=10 * SIXTEEN_TOKENS)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        policy(batch, with_entropy=True)
    assert kept
    assert not [shape for shape in kept if shape[-1:] == (1000,)]


def test_gradient_checkpointing_is_refused_where_it_would_do_nothing(
    tmp_path, monkeypatch
):
    tiny_lm("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(
        LlamaForCausalLM, "gradient_checkpointing_enable", lambda self, kwargs: None
    )
    with pytest.raises(ValueError, match=r"^gradient_checkpointing: LlamaForCausalLM"):
        load_causal_lm(tmp_path, gradient_checkpointing=True)


@pytest.mark.parametrize("trained_tokens", [None, [5, 6]])
def test_the_compute_dtype_rounds_embeddings_as_an_engine_does(trained_tokens):
    lm = tiny_lm("gemma2")
    if trained_tokens:
        lora = LoraConfig(r=2, trainable_token_indices=trained_tokens)
        lm = get_peft_model(lm, lora)
    policy = CausalLMPolicy(lm, compute_dtype=torch.bfloat16)
    seen = []
    policy.causal_lm.model.layers[0].register_forward_pre_hook(
        lambda layer, inputs: seen.append(inputs[0].dtype)
    )
    policy(packed([[torch.arange(3, 60)]]))
    assert seen == [torch.bfloat16]


def test_a_text_model_within_a_multimodal_one_is_found():
    text = {k: v for k, v in COMMON.items() if not k.endswith("token_id")}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(
        Gemma3Config(
            text_config={**text, **FAMILIES["gemma3_text"]},
            vision_config=vision,
            image_token_index=99,
        )
    )
    policy = CausalLMPolicy(lm, with_value_head=True)
    assert policy.value_head.in_features == COMMON["hidden_size"]
    assert "value_head.weight" not in policy.trainable_parameters()
    tokens = torch.arange(3, 40)
    output = policy(packed([[tokens, tokens.flip(0)]]))
    torch.testing.assert_close(
        output.logp[0, 1:37], logp_of_model(lm, tokens), atol=1e-4, rtol=0.0
    )
    assert output.values.shape == output.logp.shape
