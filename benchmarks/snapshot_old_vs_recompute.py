"""What exactness costs: `snapshot_old` against `current_recompute` on one batch.

The episodes of a group begin together, under one of four versions. In one row they end
under it, and the exact source needs no more tokens than the proxy but for what groups
of different versions have in common. In the other each episode was under way while the
next version was published, at a moment drawn evenly from its turns: what precedes it is
computed under both, since the later version's tokens follow from it too.

Both compute what sequences begin with in common once in a pass. How many tokens that
leaves is the least that an exact source can do, and rows of its own: a pass per version
has less in common than one pass over all.
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
EXACT, PROXY = "snapshot_old", "current_recompute"


def run(repeats: int = 5) -> Row:
    """CPU seconds of both, in turns; one version in each episode."""
    return _compare_seconds("snapshot_old_vs_recompute", 1, repeats)


def two_versions(repeats: int = 5) -> Row:
    """CPU seconds of both, in turns; two versions in each episode."""
    return _compare_seconds("snapshot_old_vs_recompute_two_versions", 2, repeats)


def tokens() -> Row:
    """Tokens that both compute; one version in each episode."""
    return _compare_tokens("snapshot_old_vs_recompute_tokens", 1)


def tokens_two_versions() -> Row:
    """Tokens that both compute; two versions in each episode."""
    return _compare_tokens("snapshot_old_vs_recompute_tokens_two_versions", 2)


def _compare_seconds(name: str, versions_per_episode: int, repeats: int) -> Row:
    scoring = Scoring(versions_per_episode)
    return compare(
        name,
        "CPU s",
        lambda: scoring.seconds(EXACT),
        lambda: scoring.seconds(PROXY),
        repeats,
    )


def _compare_tokens(name: str, versions_per_episode: int) -> Row:
    scoring = Scoring(versions_per_episode)
    exact, proxy = (scoring.tokens(source) for source in (EXACT, PROXY))
    return Row(name, exact, "tokens", proxy, exact / proxy)


class Scoring:
    """Both sources, with all versions, and a batch.

    Args:
        versions_per_episode: 1 or 2.
    """

    def __init__(self, versions_per_episode: int) -> None:
        episodes = demonstrated_episodes()
        rng = np.random.default_rng(0)
        for start in range(0, len(episodes), GROUP_SIZE):
            first = int(rng.integers(NUM_VERSIONS - versions_per_episode + 1))
            for episode in episodes[start : start + GROUP_SIZE]:
                _set_versions(episode, first, versions_per_episode, rng)
        self._batch = PackEpisodes()(
            rl_module=None, batch={}, episodes=episodes, shared_data={}
        )[DEFAULT_MODULE_ID]
        self._policy = CausalLMPolicy(load_causal_lm(small_agent_dir()))
        config = AsyncDecoupledPPOConfig().training(max_staleness=NUM_VERSIONS)
        self._sources = {
            name: make_source(name, SourceSettings.from_config(config))
            for name in (EXACT, PROXY)
        }
        for version in range(NUM_VERSIONS + 1):
            for source in self._sources.values():
                source.on_publish(version, self._policy.trainable_parameters())

    def seconds(self, name: str) -> float:
        """CPU time of a source, which says the same on a machine with other work."""
        start = time.process_time()
        with torch.no_grad():
            self._sources[name].old_logp(self._batch, self._forward, NUM_VERSIONS)
        return time.process_time() - start

    def tokens(self, name: str) -> int:
        """That the decoder computes for a source, in all passes."""
        computed: list[int] = []
        decoder = self._policy.causal_lm.get_decoder()
        hook = decoder.register_forward_pre_hook(
            lambda _, args, kwargs: computed.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        self.seconds(name)
        hook.remove()
        return sum(computed)

    def _forward(self, rows, parameters):
        return self._policy.score(rows, parameters, MICRO_BATCH_TOKENS)


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
