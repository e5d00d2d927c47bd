"""What exactness costs: `snapshot_old` against `current_recompute` on one batch.

The episodes of a group begin together, under one of four versions. In one row they end
under it, and the exact source needs no more tokens than the proxy but for what groups
of different versions have in common. In the other each episode was under way while the
next version was published, at a moment drawn evenly from its turns: what precedes it is
computed under both, since the later version's tokens follow from it too.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from benchmarks.learner_vs_bare_torch import GROUP_SIZE, demonstrated_episodes
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
    """Seconds of both, in turns; one version in each episode."""
    return _compare("snapshot_old_vs_recompute", 1, repeats)


def two_versions(repeats: int = 5) -> Row:
    """Seconds of both, in turns; two versions in each episode."""
    return _compare("snapshot_old_vs_recompute_two_versions", 2, repeats)


def _compare(name: str, versions_per_episode: int, repeats: int) -> Row:
    episodes = demonstrated_episodes()
    rng = np.random.default_rng(0)
    for start in range(0, len(episodes), GROUP_SIZE):
        first = int(rng.integers(NUM_VERSIONS - versions_per_episode + 1))
        for episode in episodes[start : start + GROUP_SIZE]:
            _set_versions(episode, first, versions_per_episode, rng)
    batch = PackEpisodes()(rl_module=None, batch={}, episodes=episodes, shared_data={})[
        DEFAULT_MODULE_ID
    ]
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
        with torch.no_grad():
            sources[name].old_logp(batch, forward, NUM_VERSIONS)
        return time.perf_counter() - start

    return compare(
        name,
        "s",
        lambda: seconds("snapshot_old"),
        lambda: seconds("current_recompute"),
        repeats,
    )


def _set_versions(
    episode: SingleAgentEpisode,
    first: int,
    num_versions: int,
    rng: np.random.Generator,
) -> None:
    """Gives its turns versions that rise from ``first`` by 1, at moments of chance."""
    published = rng.integers(0, len(episode) + 1, size=num_versions - 1)
    versions = episode.extra_model_outputs[columns.EPISODE_VERSIONS].data
    for turn, of_turn in enumerate(versions):
        of_turn[:] = first + (published <= turn).sum()
