"""Tiny random models, one per family, with what makes the family different set."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rllib_llm_async.batch import columns
from rllib_llm_async.models.attention import plain_attention

VOCABULARY = 100
#: Memory for the logits of 16 tokens in float32, with their gradient.
SIXTEEN_TOKENS = 16 * VOCABULARY * 8

#: Large weights, so that an error of any part shows.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LINEAR_ATTENTION = {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

FAMILIES: dict[str, dict] = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {"head_dim": 16, **_EXPERTS},
    "qwen3_next": {
        **_LINEAR_ATTENTION,
        **_HYBRID,
        **_EXPERTS,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_5_text": {**_LINEAR_ATTENTION, **_HYBRID},
    "qwen3_5_moe_text": {
        **_LINEAR_ATTENTION,
        **_HYBRID,
        **_EXPERTS,
        "shared_expert_intermediate_size": 32,
    },
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 8},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 3.0,
        "attn_logit_softcapping": 5.0,
        **_SLIDING,
    },
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 3.0,
        **_SLIDING,
    },
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 16,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "final_logit_softcapping": 3.0,
        **_SLIDING,
    },
    "granite": {
        "logits_scaling": 8.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    },
    "phi": {},
    "phi3": {},
    "cohere": {"logit_scale": 0.3, "use_qk_norm": True},
    "cohere2": {"logit_scale": 0.3, **_SLIDING, "sliding_window": 64},
    "glm4": {"head_dim": 16},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **_SLIDING,
    },
    "falcon_h1": {
        "head_dim": 16,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "lm_head_multiplier": 0.3,
        "embedding_multiplier": 2.0,
    },
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 64},
    "llama4_text": {
        "head_dim": 16,
        "intermediate_size_mlp": 64,
        "num_local_experts": 2,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}


def tiny_lm(family: str, seed: int = 0, **settings) -> torch.nn.Module:
    """The family's causal LM with random weights in float32, biases too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, **{**COMMON, **FAMILIES.get(family, {}), **settings}
    )
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("bias") or parameter.std() == 0:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return lm


def logp_of_model(lm: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """log pi ``[tokens - 1]`` of one sequence, as transformers computes it."""
    with plain_attention(lm):
        logits = lm(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[1:, None]).squeeze(-1)


def packed(rows: list[list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch of these rows of sequences; all tokens but the first are scored."""
    length = max(sum(map(len, row)) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    position_ids = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        joined = torch.cat(row)
        tokens[number, : len(joined)] = joined
        position_ids[number, : len(joined)] = torch.cat(
            [torch.arange(len(sequence)) for sequence in row]
        )
    return {
        columns.TOKENS: tokens,
        columns.POSITION_IDS: position_ids,
        columns.LOSS_MASK: position_ids > 0,
    }
