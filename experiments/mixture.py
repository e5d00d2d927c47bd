"""The bundled agent as a mixture of experts that differ."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rllib_llm_async.batch import columns
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.models.small_agent.cloning_data import cloning_batches
from rllib_llm_async.models.small_agent.warm_start import WarmStartRecipe

NUM_EXPERTS = 4
NUM_ACTIVE = 2
#: Of each expert's matrices, relative to their standard deviation. With less of it the
#: experts are so alike that it hardly matters which of them a token goes to: half of it
#: leaves a bfloat16 pass as far from a float32 one with its routing as without.
NOISE = 0.85
#: Behaviour cloning after the noise, which leaves next to nothing of the agent's play.
HEALING_STEPS = 100
HEALING_LR = 1e-3


def small_mixture() -> Path:
    """Directory of the mixture that has learned to play again; made once a machine."""
    directory = Path(tempfile.gettempdir()) / f"small_mixture_{NOISE}_{HEALING_STEPS}"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
            made = Path(unfinished, "model")
            write_mixture(made, healing_steps=HEALING_STEPS)
            os.rename(made, directory)
    return directory


def write_mixture(
    directory: Path, *, noise: float = NOISE, healing_steps: int = 0
) -> None:
    """Writes a Qwen3-MoE, and its tokenizer, to a directory.

    Each expert is the agent's MLP with noise, the router is random, and the weights of
    the active experts add up to 1.

    Args:
        directory: Where.
        noise: Of each expert's matrices, see `NOISE`.
        healing_steps: In which the demonstrator of the airline is cloned then.
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
        weight.copy_(one + noise * one.std() * torch.randn_like(weight))
    tokenizer = AutoTokenizer.from_pretrained(small_agent_dir())
    _heal(mixture, ChatFormat(tokenizer), healing_steps)
    mixture.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _heal(mixture: torch.nn.Module, chat_format: ChatFormat, steps: int) -> None:
    """Clones the demonstrator, who errs as at the end of the agent's own warm start."""
    recipe = WarmStartRecipe(domains=("airline",), steps=steps, erring_steps=steps)
    policy = CausalLMPolicy(mixture)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=HEALING_LR, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, max(1, steps))
    suite = MiniMixtureSuite(recipe.domains)
    for arrays in cloning_batches(recipe, suite, chat_format):
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
        loss = -policy(batch).logp.sum() / batch[columns.LOSS_MASK].sum()
        policy.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
