"""What trains is what is served, for every kind of LoRA that is not refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.hf_causal_lm import HFCausalLM
from rllib_llm_async.models.loading import load_causal_lm
from tests.models.families import logp_of_model, packed, tiny_lm

LAYERS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
EMBEDDINGS = ["embed_tokens", "lm_head"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
TOLERANCE = {"atol": 1e-4, "rtol": 0.0}

# llama's head is a matrix of its own, qwen2's is tied to the embeddings.
RIGHT = {
    "plain": ("llama", {}),
    "dora": ("llama", {"use_dora": True}),
    "rslora": ("llama", {"use_rslora": True}),
    "head": ("llama", {"target_modules": ["q_proj", "lm_head"]}),
    "head_alone_dora": ("llama", {"target_modules": ["lm_head"], "use_dora": True}),
    "embeddings": ("llama", {"target_modules": EMBEDDINGS}),
    "embeddings_dora": (
        "llama",
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    ),
    "save_head": ("llama", {"modules_to_save": ["lm_head"]}),
    "save_norms_and_mlp": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]},
    ),
    "save_tied": (
        "qwen2",
        {"modules_to_save": EMBEDDINGS, "ensure_weight_tying": True},
    ),
    "tokens_tied": ("qwen2", {"trainable_token_indices": [5, 6, 7]}),
    "tokens_of_head": ("llama", {"trainable_token_indices": {"lm_head": [5, 6]}}),
    "pissa": ("llama", {"init_lora_weights": "pissa"}),
    "olora_dora": ("llama", {"init_lora_weights": "olora", "use_dora": True}),
    "orthogonal": ("llama", {"init_lora_weights": "orthogonal"}),
    "bias_all": ("llama", {"bias": "all"}),
    "bias_lora_only": ("llama", {"bias": "lora_only"}),
    "lora_bias": ("llama", {"lora_bias": True}),
    "patterns": (
        "llama",
        {
            "layers_to_transform": [1],
            "rank_pattern": {"q_proj": 2},
            "alpha_pattern": {"v_proj": 32},
        },
    ),
    "experts": ("qwen3_moe", {"target_parameters": EXPERTS}),
    "router": ("qwen3_moe", {"target_parameters": ["mlp.gate.weight"]}),
    "linear_attention": ("qwen3_next", {"target_modules": "all-linear"}),
    "scaled_embeddings": ("gemma3_text", {"trainable_token_indices": [5, 6, 7]}),
    "scaled_logits": ("granite", {"target_modules": ["lm_head"]}),
}

TIED = "are one tensor in the model and in the engine"
REFUSED = {
    "dropout": ("llama", {"lora_dropout": 0.1}, "lora_dropout: got 0.1"),
    "random_start": (
        "llama",
        {"init_lora_weights": False},
        "init_lora_weights: got False",
    ),
    "random_svd": (
        "llama",
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights: got 'pissa_niter_4'",
    ),
    "data": ("llama", {"init_lora_weights": "eva"}, "init_lora_weights: got 'eva'"),
    "replicated": ("llama", {"layer_replication": [[0, 2], [1, 2]]}, "layer_replicat"),
    "alora": ("llama", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "qalora": ("llama", {"use_qalora": True}, "use_qalora"),
    "no_target": ("llama", {"target_modules": ["nope"]}, "'nope'.*not found"),
    "no_bias": ("qwen2", {"target_modules": ["o_proj"], "lora_bias": True}, "no bias"),
    "tied_head": ("qwen2", {"target_modules": ["lm_head"]}, TIED),
    "tied_embeddings": ("qwen2", {"target_modules": ["embed_tokens"]}, TIED),
    "tied_both": ("qwen2", {"target_modules": EMBEDDINGS}, TIED),
    "tied_by_memory": (
        "qwen2",
        {"target_modules": EMBEDDINGS, "ensure_weight_tying": True},
        "share memory",
    ),
    "tied_saved": ("qwen2", {"modules_to_save": ["lm_head"]}, TIED),
    "tied_saved_both": ("qwen2", {"modules_to_save": EMBEDDINGS}, TIED),
    "tied_tokens": ("qwen2", {"trainable_token_indices": {"lm_head": [5]}}, TIED),
    "router": (
        "llama4_text",
        {"target_modules": "all-linear"},
        "Llama4ForCausalLM cannot run with these adapters",
    ),
    "not_a_module": ("falcon_h1", {"target_modules": ["conv1d"]}, "conv1d"),
}


@pytest.fixture
def tokens():
    return torch.randint(3, 100, (24,), generator=torch.Generator().manual_seed(2))


def saved(family, directory):
    lm = tiny_lm(family)
    lm.save_pretrained(directory)
    return lm


def move(policy):
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("kind", RIGHT)
def test_an_engine_gets_the_policy_that_trains(kind, tmp_path, tokens):
    family, settings = RIGHT[kind]
    base = saved(family, tmp_path)
    policy = CausalLMPolicy(load_causal_lm(tmp_path, lora={**LAYERS, **settings}))
    batch = packed([[tokens]])
    start = {n: p.detach().clone() for n, p in policy.trainable_parameters().items()}
    move(policy)
    logp = policy(batch).logp
    logp.sum().backward()
    logp = logp[0, 1:].detach()

    silent = [
        name
        for name, p in policy.trainable_parameters().items()
        if "token_adapter" not in name and (p.grad is None or not p.grad.any())
    ]
    # A router of two experts out of four may leave some without a token.
    assert not [name for name in silent if "experts" not in name]

    weights = {n: w.contiguous().clone() for n, w in policy.inference_weights()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    served = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        initial = logp_of_model(base, tokens)
        torch.testing.assert_close(
            logp, logp_of_model(served.eval(), tokens), **TOLERANCE
        )
    assert (logp - initial).abs().max() > 0.01
    # The reference of a KL term is the model as it was loaded.
    reference = policy.score(batch, start, max_tokens=64)[0, 1:]
    torch.testing.assert_close(reference, initial, **TOLERANCE)


def test_a_small_adapter_is_not_lost_in_narrow_base_weights(tmp_path):
    saved("llama", tmp_path)
    lm = load_causal_lm(tmp_path, lora=LAYERS, dtype=torch.bfloat16)
    policy = CausalLMPolicy(lm, compute_dtype=torch.bfloat16)
    layer = policy.causal_lm.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(1e-5)
    # By hand: alpha / r = 2.
    delta = 2e-5 * layer.lora_A["default"].weight.sum(0)
    weight = dict(policy.inference_weights())["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(
        weight - layer.base_layer.weight.float(),
        delta.expand_as(weight),
        atol=1e-7,
        rtol=1e-2,
    )
    assert delta.abs().max() > 1e-6


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_done_right_is_refused_by_name(kind, tmp_path):
    family, settings, reason = REFUSED[kind]
    saved(family, tmp_path)
    with pytest.raises(ValueError, match=rf"^lora[.:].*{reason}") as refused:
        CausalLMPolicy(load_causal_lm(tmp_path, lora={**LAYERS, **settings}))
    assert "\n" not in str(refused.value)


def test_another_kind_of_adapter_is_refused():
    from peft import IA3Config

    lm = get_peft_model(tiny_lm("llama"), IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"lora: .*IA3"):
        CausalLMPolicy(lm)


def test_an_adapter_that_the_model_passes_by_is_refused():
    lm = tiny_lm("llama")
    mlp = lm.model.layers[1].mlp
    mlp.forward = lambda x: torch.nn.functional.linear(x, mlp.up_proj.weight)
    lm = get_peft_model(
        lm, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["up_proj"])
    )
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*no effect"):
        CausalLMPolicy(lm)


def test_a_merge_that_is_not_what_the_module_computes_is_refused(monkeypatch):
    from peft.tuners.lora import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(
        Linear, "get_delta_weight", lambda self, name: 1.01 * right(self, name)
    )
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"lora: .*q_proj computes something else"):
        CausalLMPolicy(get_peft_model(tiny_lm("llama"), config))


def test_the_check_leaves_no_trace(tmp_path):
    saved("llama", tmp_path)
    torch.manual_seed(7)
    lm = load_causal_lm(tmp_path, lora={**LAYERS, "use_dora": True, "bias": "all"})
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    random_state = torch.get_rng_state()
    policy = CausalLMPolicy(lm)
    dict(policy.inference_weights())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert before.keys() == lm.state_dict().keys()
    for name, tensor in lm.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(not module._forward_hooks for module in lm.modules())


@pytest.mark.parametrize("compute_dtype", [None, "bfloat16"])
def test_a_checkpoint_holds_all_that_trains(compute_dtype, tmp_path, tokens):
    saved("qwen2", tmp_path)
    config = {
        "model": str(tmp_path),
        "compute_dtype": compute_dtype,
        "with_value_head": True,
        "lora": {
            **LAYERS,
            "use_dora": True,
            "init_lora_weights": "pissa",
            "bias": "all",
            "modules_to_save": EMBEDDINGS,
            "ensure_weight_tying": True,
        },
    }
    module, fresh = HFCausalLM(model_config=config), HFCausalLM(model_config=config)
    move(module.policy)
    trained = [p for p in module.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    fresh.set_state(module.get_state())
    batch = packed([[tokens]])
    expected = module.policy.score(batch, None, max_tokens=64)
    torch.testing.assert_close(
        fresh.policy.score(batch, None, max_tokens=64), expected, **TOLERANCE
    )
