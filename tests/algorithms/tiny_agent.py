"""A model for tests that train one without asking what it says."""

import shutil
import tempfile
from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rllib_llm_async.models.small_agent import small_agent_dir

_FOLDER = tempfile.TemporaryDirectory(prefix="tiny_agent_")


@cache
def tiny_agent_dir() -> str:
    """The bundled agent with two thin layers and random weights, always the same.

    An update of it takes a tenth of the time.
    """
    directory = f"{_FOLDER.name}/model"
    shutil.copytree(small_agent_dir(), directory)
    config = AutoConfig.from_pretrained(
        directory,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        layer_types=["full_attention"] * 2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    return directory
