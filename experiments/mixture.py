"""The bundled agent as a mixture of experts that differ."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rllib_llm_async.models.small_agent import small_agent_dir

NUM_EXPERTS = 4
NUM_ACTIVE = 2
#: Of each expert's matrices, relative to their standard deviation. With less of it the
#: experts are so alike that it hardly matters which of them a token goes to: half of it
#: leaves a bfloat16 pass as far from a float32 one with its routing as without.
NOISE = 0.85


@cache
def small_mixture() -> tempfile.TemporaryDirectory[str]:
    """Holds the model; goes with the process."""
    directory = tempfile.TemporaryDirectory(prefix="small_mixture_")
    write_mixture(Path(directory.name))
    return directory


def write_mixture(directory: Path) -> None:
    """Writes a Qwen3-MoE, and its tokenizer, to a directory.

    Each expert is the agent's MLP with noise, the router is random, and the weights of
    the active experts add up to 1.
    """
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_pretrained(small_agent_dir(), dtype=torch.float32)
    config = dense.config.to_dict()
    for key in ("architectures", "model_type", "layer_types", "max_window_layers"):
        config.pop(key)
    mixture = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **config,
            num_experts=NUM_EXPERTS,
            num_experts_per_tok=NUM_ACTIVE,
            moe_intermediate_size=config["intermediate_size"],
            norm_topk_prob=True,
        )
    )
    weights = dense.state_dict()
    for name, weight in mixture.state_dict().items():
        if ".mlp.gate." in name:
            continue
        if name.endswith("experts.gate_up_proj"):
            mlp = name.removesuffix("experts.gate_up_proj")
            one = torch.cat([weights[f"{mlp}{p}_proj.weight"] for p in ("gate", "up")])
        elif name.endswith("experts.down_proj"):
            one = weights[f"{name.removesuffix('experts.down_proj')}down_proj.weight"]
        else:
            weight.copy_(weights[name])
            continue
        weight.copy_(one + NOISE * one.std() * torch.randn_like(weight))
    mixture.save_pretrained(directory)
    AutoTokenizer.from_pretrained(small_agent_dir()).save_pretrained(directory)
