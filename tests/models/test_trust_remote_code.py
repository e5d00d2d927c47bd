"""Code that comes with a model runs only where it was asked for."""

import json
import shutil

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.small_agent import small_agent_dir

CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM


class OwnConfig(Qwen3Config):
    model_type = "own"


class OwnModel(Qwen3ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def model_with_code(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    directory = tmp_path / "model"
    shutil.copytree(small_agent_dir(), directory)
    (directory / "own.py").write_text(CODE)
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "own.OwnConfig",
            "AutoModelForCausalLM": "own.OwnModel",
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def policy(model, **settings):
    config = AsyncDecoupledPPOConfig().training(model=model, **settings)
    return CausalLMPolicy.from_config(config.get_default_rl_module_spec().model_config)


def test_code_from_a_model_runs_only_if_asked_for(model_with_code):
    with pytest.raises(ValueError, match="trust_remote_code"):
        policy(model_with_code)
    trusting = policy(model_with_code, trust_remote_code=True)
    assert type(trusting.lm).__name__ == "OwnModel"


def test_it_is_one_setting_for_learners_and_engines():
    config = AsyncDecoupledPPOConfig().environment("mini_tau2")
    config.training(engine={"trust_remote_code": True})
    with pytest.raises(ValueError, match="a setting of its own, beside engine"):
        config.validate()
    config.training(engine={}, trust_remote_code="yes")
    with pytest.raises(ValueError, match="trust_remote_code: got 'yes', must be true"):
        config.validate()
