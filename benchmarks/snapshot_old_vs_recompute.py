"""What exactness costs: `snapshot_old` against `current_recompute` on one batch.

The batch holds four versions, each sequence tokens of one of them, which is the case
where the exact source needs no more tokens than the proxy.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from benchmarks.learner_vs_bare_torch import demonstrated_episodes
from benchmarks.row import Row, compare
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy, load_causal_lm
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.old_logprobs import SourceSettings, make_source

NUM_VERSIONS = 4
MICRO_BATCH_TOKENS = 16384


def run(repeats: int = 5) -> Row:
    """Seconds of both, in turns."""
    batch = PackEpisodes()(
        rl_module=None, batch={}, episodes=demonstrated_episodes(), shared_data={}
    )[DEFAULT_MODULE_ID]
    sequences, mask = batch[columns.SEQUENCE_IDS], batch[columns.LOSS_MASK]
    own_version = torch.from_numpy(
        np.random.default_rng(0).integers(NUM_VERSIONS, size=int(sequences.max()) + 1)
    )
    batch[columns.VERSIONS] = torch.where(mask, own_version[sequences.clamp(min=0)], -1)

    policy = CausalLMPolicy(load_causal_lm(small_agent_dir()))

    def forward(rows, parameters):
        return policy.score(rows, parameters, MICRO_BATCH_TOKENS)

    config = AsyncDecoupledPPOConfig().training(max_staleness=NUM_VERSIONS)
    sources = {
        name: make_source(name, SourceSettings.from_config(config))
        for name in ("snapshot_old", "current_recompute")
    }
    for version in range(NUM_VERSIONS + 1):
        for source in sources.values():
            source.on_publish(version, policy.trainable_parameters())

    def seconds(name: str) -> float:
        start = time.perf_counter()
        sources[name].old_logp(batch, forward, NUM_VERSIONS)
        return time.perf_counter() - start

    return compare(
        "snapshot_old_vs_recompute",
        "s",
        lambda: seconds("snapshot_old"),
        lambda: seconds("current_recompute"),
        repeats,
    )
