"""What of an adapter travels, and which adapters vLLM can be given at all."""

import ast

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.loading import load_causal_lm
from rllib_llm_async.models.served_adapters import (
    MAX_LORA_RANKS,
    room_for,
    served_adapters,
    vllm_serves_adapters,
)
from rllib_llm_async.settings.installed import source_of, type_aliases
from tests.models.families import tiny_lm
from tests.models.test_adapters import LAYERS, RIGHT, move, saved

#: Kinds of `test_adapters.RIGHT` -> why they are merged; of the others only the
#: matrices travel.
MERGED = {
    "dora": "lora.use_dora",
    "head": "an adapter of lm_head",
    "head_alone_dora": "lora.use_dora",
    "embeddings": "an adapter of model.embed_tokens",
    "embeddings_dora": "lora.use_dora",
    "save_head": "lora.modules_to_save",
    "save_norms_and_mlp": "lora.modules_to_save",
    "save_tied": "lora.modules_to_save",
    "tokens_tied": "lora.trainable_token_indices",
    "tokens_of_head": "lora.trainable_token_indices",
    "pissa": "lora.init_lora_weights: pissa",
    "olora_dora": "lora.use_dora",
    "bias_all": "lora.bias: all",
    "bias_lora_only": "lora.bias: lora_only",
    "lora_bias": "lora.lora_bias",
    "experts": "lora.target_parameters",
    "router": "lora.target_parameters",
    "linear_attention": "a mixture of experts",
    "scaled_embeddings": "lora.trainable_token_indices",
    "scaled_logits": "an adapter of lm_head",
}
MATRICES = {
    **{kind: RIGHT[kind] for kind in RIGHT.keys() - MERGED.keys()},
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "by_pattern": ("qwen3", {"target_modules": r".*\.(o|up)_proj"}),
    "all_linear": ("qwen2", {"target_modules": "all-linear"}),
}


def served(model, lora):
    return served_adapters(str(model), lora, trust_remote_code=False)


@pytest.mark.parametrize("kind", MERGED)
def test_what_vllm_cannot_serve_is_merged_by_name(kind, tmp_path):
    family, settings = RIGHT[kind]
    saved(family, tmp_path)
    assert served(tmp_path, {**LAYERS, **settings}).merged_because == MERGED[kind]


@pytest.mark.parametrize("kind", sorted(MATRICES))
def test_base_and_matrices_are_the_policy_that_trains(kind, tmp_path):
    family, settings = MATRICES[kind]
    base = saved(family, tmp_path).state_dict()
    lora = {**LAYERS, **settings}
    policy = CausalLMPolicy(load_causal_lm(tmp_path, lora=lora))
    move(policy)
    sent = dict(policy.adapter_weights())
    layers = {name.rpartition(".lora_")[0] for name in sent}
    whole = dict(policy.inference_weights())
    for layer in layers:
        name = layer.removeprefix("base_model.model.") + ".weight"
        delta = sent[f"{layer}.lora_B.weight"] @ sent[f"{layer}.lora_A.weight"]
        assert delta.abs().max() > 1e-3
        torch.testing.assert_close(base[name] + delta, whole.pop(name))
    assert all(torch.equal(base[name], weight) for name, weight in whole.items())

    told = served(tmp_path, lora)
    assert told.merged_because is None
    assert told.rank == max(
        len(matrix) for name, matrix in sent.items() if ".lora_A." in name
    )
    assert set(told.layers) == {layer.rpartition(".")[2] for layer in layers}


def test_the_factor_of_each_layer_is_in_its_matrix(tmp_path):
    """By hand: alpha / r is 8 / 4, and 32 / 4 and 8 / 2 by the patterns."""
    family, settings = RIGHT["patterns"]
    saved(family, tmp_path)
    policy = CausalLMPolicy(load_causal_lm(tmp_path, lora={**LAYERS, **settings}))
    move(policy)
    sent = dict(policy.adapter_weights())
    adapted = {
        name: layer
        for name, layer in policy.causal_lm.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    factors = {}
    for name, layer in adapted.items():
        b = layer.lora_B["default"].weight.detach()
        scaled = sent[f"base_model.model.{name}.lora_B.weight"]
        factors[name.rpartition(".")[2]] = float((scaled / b).median())
    assert factors == pytest.approx({"q_proj": 4.0, "v_proj": 8.0, "down_proj": 2.0})


def test_rooms_for_ranks_are_those_of_vllm():
    module = ast.parse(source_of("vllm", "config/lora.py"))
    ranks = ast.literal_eval(type_aliases([module])["MaxLoRARanks"].slice)
    assert ranks == MAX_LORA_RANKS
    assert [room_for(rank) for rank in (1, 2, 8, 9, 512)] == [1, 8, 8, 16, 512]


def test_a_rank_beyond_all_rooms_is_merged(tmp_path):
    saved("llama", tmp_path)
    lora = {**LAYERS, "rank_pattern": {"q_proj": 513}}
    assert served(tmp_path, lora).merged_because == "rank 513, above 512"


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_models_that_take_adapters_or_are_made_of_one(name):
    assert vllm_serves_adapters(name)


@pytest.mark.parametrize("name", ["MyForCausalLM", "MambaForCausalLM"])
def test_models_without_are_known(name):
    assert not vllm_serves_adapters(name)


def test_a_model_that_vllm_gives_no_adapters_is_merged(tmp_path, monkeypatch):
    tiny_lm("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(
        "rllib_llm_async.models.served_adapters.vllm_serves_adapters", lambda _: False
    )
    reason = served(tmp_path, LAYERS).merged_because
    assert reason == "the model LlamaForCausalLM"
