"""What each source of pi_old costs a learner alone, at the shape of a published model.

One learner on one GPU (or CPU) makes a few versions of random weights, then takes one
update on a whole batch, whose episodes hold tokens of all versions of the window: exact
old log-probabilities are trained on, the other sources are computed beside them.
Seconds and memory are of that update. What `rllib size` says of the same learner stands
beside the memory that it took.

    python -m benchmarks.source_costs [--shape Qwen3-4B] [--episodes 64]
        [--tokens 4096] [--window 5] [--versions-per-episode 1]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from benchmarks.gpu import device_name, peak_flops, peak_memory
from benchmarks.old_logprob_sources import EXACT, print_costs, row_of
from benchmarks.random_models import SHAPES, write_model
from benchmarks.row import say
from rllib_llm_async import AsyncDecoupledPPOConfig, result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE
from rllib_llm_async.sizing.memory import size_of

GROUP_SIZE = 8
NUM_TURNS = 8
#: Beside the exact one: those that are no formula on values that are there anyway.
COMPARED = ["current_recompute", "linear_prox", "ewma_prox", "ppo_ewma_async"]


def make_config(model: Path, window: int) -> AsyncDecoupledPPOConfig:
    """A learner in the driver's process, on the GPU if there is one."""
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .learners(num_learners=0, num_gpus_per_learner=int(torch.cuda.is_available()))
        .training(
            model=str(model),
            engine={"dtype": "bfloat16"},
            old_logprob_source=EXACT,
            compare_sources=COMPARED,
            max_staleness=window - 1,
            compute_dtype="bfloat16" if torch.cuda.is_available() else None,
            gradient_checkpointing=True,
            micro_batch_tokens=16384,
            group_size=GROUP_SIZE,
            episodes_per_update=GROUP_SIZE,
            minibatch_size=None,
            lr=1e-6,
            eps_ti=1e6,
            discrepancy_weight="none",
        )
        .debugging(seed=0)
    )
    config.validate()
    return config


def random_episodes(
    num: int, num_tokens: int, versions: list[list[int]], vocab_size: int
) -> list[SingleAgentEpisode]:
    """Groups that share a prompt of a quarter of the tokens, paid by chance.

    Args:
        num: Of episodes.
        num_tokens: Of each.
        versions: Those that episode i samples from, one after the other, at i modulo
            their number.
        vocab_size: Of the model.
    """
    rng = np.random.default_rng(0)
    said = num_tokens * 3 // 4 // (2 * NUM_TURNS)
    episodes = []
    for number in range(num):
        if number % GROUP_SIZE == 0:
            prompt = rng.integers(0, vocab_size, num_tokens - 2 * NUM_TURNS * said)
        episode = SingleAgentEpisode(len_lookback_buffer=0)
        episode.custom_data[columns.GROUP_ID] = number // GROUP_SIZE
        episode.add_env_reset(prompt)
        own = versions[number % len(versions)]
        for turn in range(NUM_TURNS):
            version = own[turn * len(own) // NUM_TURNS]
            is_last = turn == NUM_TURNS - 1
            episode.add_env_step(
                observation=rng.integers(0, vocab_size, 0 if is_last else said),
                action=rng.integers(0, vocab_size, said),
                reward=float(is_last and number % 2),
                terminated=is_last,
                extra_model_outputs={
                    columns.EPISODE_BEHAVIOR_LOGP: np.full(
                        said, -np.log(vocab_size), np.float32
                    ),
                    columns.EPISODE_VERSIONS: np.full(said, version),
                },
            )
        episodes.append(episode)
    return episodes


def measure(
    shape: str, num_episodes: int, num_tokens: int, window: int, per_episode: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The update's figures, and a row for each source."""
    vocab_size = SHAPES[shape]["vocab_size"]
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory)
        say("drawing weights")
        num_parameters = write_model(shape, model, torch.bfloat16)
        config = make_config(model, window)
        size = size_of(config)
        say("loading the learner")
        learner = config.build_learner(
            spaces={DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE)}
        )
        for version in range(window):
            say(f"version {version + 1}")
            few = random_episodes(GROUP_SIZE, 256, [[version]], vocab_size)
            learner.update(training_data=TrainingData(episodes=few))
        # The last update, whose weights are the newest, has made version `window`.
        ages = [
            [*range(v, min(v + per_episode, window + 1))] for v in range(1, window + 1)
        ]
        episodes = random_episodes(num_episodes, num_tokens, ages, vocab_size)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        say("the whole batch")
        start = time.monotonic()
        results = learner.update(training_data=TrainingData(episodes=episodes))
        seconds = time.monotonic() - start
    figures = {
        key: value.peek() if hasattr(value, "peek") else value
        for key, value in results[DEFAULT_MODULE_ID].items()
    }
    in_steps = (
        seconds
        - figures[result_keys.OLD_LOGPROB_SECONDS]
        - figures[result_keys.COMPARE_SECONDS]
    )
    one_pass = figures[result_keys.COMPARE_ONE_PASS_SECONDS]
    computed = num_tokens * num_episodes
    update = {
        "shape": shape,
        "device": device_name(),
        "parameters": num_parameters,
        "tokens": computed,
        "versions": figures[result_keys.SNAPSHOT_NUM_VERSIONS],
        "update_s": seconds,
        "steps_s": in_steps,
        "one_pass_s": one_pass,
        "mfu_of_a_pass": 2 * num_parameters * computed / one_pass / peak_flops(),
        "memory_gb": peak_memory() / 1e9,
        "said_by_size_gb": size.places[0].nbytes / 1e9,
    }
    return update, [row_of(name, [figures]) for name in [EXACT, *COMPARED]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=list(SHAPES), default="Qwen3-4B")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--versions-per-episode", type=int, default=1)
    arguments = parser.parse_args()
    update, rows = measure(
        arguments.shape,
        arguments.episodes,
        arguments.tokens,
        arguments.window,
        arguments.versions_per_episode,
    )
    print_costs(rows)
    for row in [update, *rows]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
