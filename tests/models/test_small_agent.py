"""The shipped agent, and the command that built it."""

import json
from dataclasses import asdict

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.models.small_agent.warm_start import WarmStartRecipe, warm_start


def test_the_shipped_weights_are_small_and_of_the_documented_kind():
    directory = small_agent_dir()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert model.config.model_type == "qwen3"
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 5e6
    assert (directory / "model.safetensors").stat().st_size <= 8e6


def test_the_shipped_weights_come_from_the_default_recipe_and_leave_room_to_learn():
    told = json.loads((small_agent_dir() / "warm_start.json").read_text())
    success = told.pop("held_out_success")
    assert told == json.loads(json.dumps(asdict(WarmStartRecipe())))
    assert success.keys() == {*MiniMixtureSuite().domains}
    # Measured: 0.49 (retail) to 0.61 (in-store).
    assert all(0.2 < rate < 0.8 for rate in success.values())


@pytest.mark.slow
def test_the_warm_start_rebuilds_the_agent(ray_cluster, tmp_path):
    recipe = WarmStartRecipe(steps=30, erring_steps=10, dialogues_per_step=4)
    metrics = warm_start(recipe, tmp_path / "agent")
    assert metrics["loss"] < 0.8 * metrics["initial_loss"]

    rebuilt = AutoTokenizer.from_pretrained(tmp_path / "agent")
    shipped = AutoTokenizer.from_pretrained(small_agent_dir())
    assert rebuilt.get_vocab() == shipped.get_vocab()
    assert rebuilt.chat_template == shipped.chat_template
    one = AutoModelForCausalLM.from_pretrained(tmp_path / "agent").state_dict()
    other = AutoModelForCausalLM.from_pretrained(small_agent_dir()).state_dict()
    assert {n: t.shape for n, t in one.items()} == {
        n: t.shape for n, t in other.items()
    }
