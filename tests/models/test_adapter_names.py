"""Layers that `lora` names and the model does not have are refused, not passed over."""

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.models.loading import equipped, load_causal_lm
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.models.families import tiny_lm

Q = {"r": 2, "target_modules": ["q_proj"]}
DORA = {"use_dora": True}
LAYERS = "Valid: down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj"
WRONG = {
    "one_of_two": (
        {"target_modules": ["q_proj", "k_prj"]},
        f"lora.target_modules: unknown 'k_prj', did you mean 'k_proj'. {LAYERS}",
    ),
    "a_part_of_a_name": (
        {"target_modules": ["q_proj", "proj"]},
        "lora.target_modules: unknown 'proj'",
    ),
    "all": (
        {"target_modules": ["nope"]},
        "lora: Target modules .'nope'. not found .*layers of the model are down_proj",
    ),
    "a_pattern": ({"target_modules": "nope"}, "lora: Target modules nope not found"),
    "excluded": (
        {"exclude_modules": ["o_prj"]},
        f"lora.exclude_modules: unknown 'o_prj', did you mean 'o_proj'. {LAYERS}",
    ),
    "layer": (
        {"layers_to_transform": [0, 4]},
        r"lora.layers_to_transform: got \[0, 4\], must be numbers of layers, 0 to 3",
    ),
    "layer_alone": (
        {"layers_to_transform": -1},
        r"lora: Target modules .*'layers_to_transform': -1",
    ),
    "rank": (
        {"rank_pattern": {"k_proj": 4}},
        "lora.rank_pattern: unknown 'k_proj', .* Valid: q_proj",
    ),
    "alpha": (
        {"alpha_pattern": {"k_proj": 4}},
        "lora.alpha_pattern: unknown 'k_proj', .* Valid: q_proj",
    ),
    "saved": (
        {"modules_to_save": ["lm_hed"]},
        f"lora.modules_to_save: unknown 'lm_hed', did you mean 'lm_head'. {LAYERS}",
    ),
    "parameter": (
        {"target_parameters": ["q_proj.weigt"]},
        "lora.target_parameters: unknown 'q_proj.weigt', .*'q_proj.weight'",
    ),
    "dora": ({**DORA, "target_modules": ["q_prj"]}, "lora: Target modules .'q_prj'"),
    "dora_of_two": (
        {**DORA, "target_modules": ["q_proj", "k_prj"]},
        "lora.target_modules: unknown 'k_prj'",
    ),
}


def check(model, lora, **training):
    config = AsyncDecoupledPPOConfig().environment("mini_tau2")
    config.training(model=model, lora={**Q, **lora}, **training).validate()


@pytest.mark.parametrize("lora_sync", ["auto", "merged"])
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_there_is_refused_before_anything_starts(kind, lora_sync):
    lora, words = WRONG[kind]
    with pytest.raises(ValueError, match=words):
        check("small_agent", lora, lora_sync=lora_sync)


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_there_is_refused_where_weights_are_loaded(kind):
    lora, words = WRONG[kind]
    with pytest.raises(ValueError, match=words):
        load_causal_lm(small_agent_dir(), lora={**Q, **lora})


def test_what_vllm_cannot_serve_is_refused_before_anything_starts():
    with pytest.raises(ValueError, match="lora_sync: got 'adapter', must be auto or"):
        check("small_agent", DORA, lora_sync="adapter")
    check("small_agent", DORA)


@pytest.mark.parametrize(
    ("family", "wrong", "right"),
    [
        # One that PEFT knows by the names of single experts, and one by others.
        ("qwen3_moe", ["q_proj", "w1"], ["q_proj", "gate_proj", "up_proj"]),
        ("mixtral", ["q_proj", "gate_proj"], ["q_proj", "w1", "w3"]),
    ],
)
def test_names_of_single_experts_are_those_that_peft_knows(family, wrong, right):
    def adapted(names):
        lora = {"r": 2, "target_modules": names}
        return equipped(tiny_lm(family), lora=lora, gradient_checkpointing=False)

    with pytest.raises(ValueError, match=f"lora.target_modules: unknown '{wrong[1]}'"):
        adapted(wrong)
    assert adapted(right).base_model.targeted_parameter_names


def test_a_hubs_model_is_looked_at_where_it_is_in_the_cache(put_in_cache):
    name, wrong = "somebody/agent", {"target_modules": ["q_prj"]}
    check(name, wrong)
    put_in_cache(name, small_agent_dir())
    with pytest.raises(ValueError, match=r"lora: Target modules .'q_prj'"):
        check(name, wrong)
    check(name, {})
