"""`lora` by the names and types of PEFT's own class."""

import ast
from dataclasses import fields

import pytest
from peft import LoraConfig

from rllib_llm_async.settings.installed import dataclass_fields, source_of
from rllib_llm_async.settings.lora import check_lora


def test_the_names_are_those_of_the_class():
    module = ast.parse(source_of("peft", "tuners/lora/config.py"))
    inherited = {field.name for field in fields(LoraConfig.__mro__[1])}
    names = {field.name for field in fields(LoraConfig) if field.init} - inherited
    assert names <= set(dataclass_fields(module, ["LoraConfig"]))


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "use_rslora": True},
        {"target_modules": "all-linear", "lora_dropout": 0.0, "bias": "none"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": True, "modules_to_save": None, "use_qalora": False},
        {"layers_to_transform": [0, 1], "rank_pattern": {"q_proj": 4}},
    ],
)
def test_takes(lora):
    check_lora(lora)
    LoraConfig(**lora)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"rank": 8}, "lora.rank: no argument of peft.LoraConfig"),
        ({"lora_alfa": 8}, "lora.lora_alfa: .*did you mean 'lora_alpha'"),
        ({"target_module": ["q"]}, "did you mean 'target_modules'"),
        ({"r": "8"}, "lora.r: got '8', must be a whole number at least 1"),
        ({"r": 0}, "lora.r: got 0, must be a whole number at least 1"),
        ({"r": True}, "lora.r: got True"),
        ({"lora_alpha": -1}, "lora.lora_alpha: got -1, .*above 0"),
        (
            {"init_lora_weights": "gausian"},
            "got 'gausian', .*'pissa'",
        ),
        (
            {"init_lora_weights": "pissa_niter_"},
            "got 'pissa_niter_'",
        ),
        ({"init_lora_weights": None}, "init_lora_weights: got None"),
        ({"bias": "some"}, "lora.bias: got 'some', must be one of 'none', 'all'"),
        ({"use_dora": "yes"}, "lora.use_dora: got 'yes', must be true or false"),
        ({"target_modules": 3}, "lora.target_modules: got 3, must be a list"),
        ({"target_modules": [3]}, r"lora.target_modules: got \[3\]"),
        ({"lora_dropout": 0.1}, "lora.lora_dropout: got 0.1, must be 0: .*noise"),
        ({"lora_dropout": 1.5}, "lora.lora_dropout: got 1.5"),
        ({"task_type": "CAUSAL_LM"}, "lora.task_type: .*leave it out"),
        ({"init_lora_weights": False}, "lora.init_lora_weights: got False, must be"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "'pissa_niter_4', must be one of True",
        ),
        ({"init_lora_weights": "eva"}, "got 'eva', must be one of True"),
        ({"use_qalora": True}, "lora.use_qalora: got True, .*cannot hold"),
        ({"layer_replication": [[0, 2]]}, "lora.layer_replication: got .*cannot hold"),
        ({"alora_invocation_tokens": [1]}, "lora.alora_invocation_tokens: got"),
        ({"inference_mode": True}, "lora.inference_mode: .*to be trained"),
    ],
)
def test_does_not_take(lora, words):
    with pytest.raises(ValueError, match=words) as error:
        check_lora(lora)
    assert "\n" not in str(error.value)
