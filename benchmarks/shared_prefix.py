"""Sequences that begin alike: each beginning computed once against once in each.

Forward and backward passes over whole batches, in tokens of the batch per second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.learner_vs_bare_torch import NUM_EPISODES, demonstrated_episodes
from benchmarks.row import Row, compare
from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy, load_causal_lm
from rllib_llm_async.models.small_agent import small_agent_dir

#: Of tau2's retail domain, a tenth of its tokens: policy and tools, what the user asks
#: for, and a dialogue. With a model of tiny width full lengths would show attention
#: alone; with these it weighs beside the layers as in a model of some 4B.
POLICY, TASK, DIALOGUES = 420, 50, range(230, 631, 57)
NUM_GROUPS = 2


def airline(repeats: int = 5) -> Row:
    """The bundled agent on groups of the bundled airline, in usual micro-batches.

    What follows the prompt is drawn at random: dialogues that an agent samples are more
    alike, and demonstrations much more.
    """
    torch.manual_seed(0)
    policy = CausalLMPolicy(load_causal_lm(small_agent_dir()))
    batch = PackEpisodes()(
        rl_module=None, batch={}, episodes=demonstrated_episodes(), shared_data={}
    )[DEFAULT_MODULE_ID]
    sequences = batch[columns.SEQUENCE_IDS].clamp(min=0)
    positions, tokens = batch[columns.POSITION_IDS], batch[columns.TOKENS]
    said = positions.where(batch[columns.LOSS_MASK], tokens.numel())
    prompts = torch.full((NUM_EPISODES,), tokens.numel())
    prompts.scatter_reduce_(0, sequences.flatten(), said.flatten(), "amin")
    drawn = torch.randint(5, 400, tokens.shape)
    batch[columns.TOKENS] = tokens.where(positions < prompts[sequences], drawn)
    return _compare("shared_prefix_vs_packed", policy, batch, repeats)


def retail(repeats: int = 3) -> Row:
    """A small wide model on groups of tau2 retail's proportions."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
    )
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return _compare(
        "shared_prefix_vs_packed_retail", CausalLMPolicy(lm), _retail_batch(), repeats
    )


def _retail_batch() -> dict[str, Tensor]:
    """Groups of eight; what the agent says are the last 16 tokens of each 64."""
    policy = torch.randint(1000, (POLICY,))
    sequences = []
    for _ in range(NUM_GROUPS):
        task = torch.randint(1000, (TASK,))
        for length in DIALOGUES:
            tokens = torch.cat([policy, task, torch.randint(1000, (length,))])
            places = torch.arange(len(tokens))
            sequences.append(
                {
                    columns.TOKENS: tokens.numpy(),
                    columns.POSITION_IDS: places.numpy(),
                    columns.SEQUENCE_IDS: torch.zeros_like(places).numpy(),
                    columns.LOSS_MASK: (
                        (places >= POLICY + TASK) & (places % 64 >= 48)
                    ).numpy(),
                }
            )
    packed = pack_rows(sequences, min_row_tokens=512)
    return {key: torch.from_numpy(column) for key, column in packed.items()}


def _compare(
    name: str, policy: CausalLMPolicy, batch: Mapping[str, Tensor], repeats: int
) -> Row:
    num_tokens = int((batch[columns.SEQUENCE_IDS] >= 0).sum())

    def tokens_per_second(share_prefixes: bool) -> float:
        policy.share_prefixes = share_prefixes
        start = time.perf_counter()
        for _, part in policy.micro_batches(batch, max_tokens=16384):
            policy(part).logp.sum().backward()
        return num_tokens / (time.perf_counter() - start)

    return compare(
        name,
        "tokens/s",
        lambda: tokens_per_second(True),
        lambda: tokens_per_second(False),
        repeats,
    )
