"""Every way of the weights on GPUs: a person with two of them runs this once.

A model of random weights in the shape of Qwen3-0.6B trains for a few updates over each
`weight_transport`; then what all sources of pi_old cost is measured beside what was
published for Qwen3-4B (arXiv 2605.12070). Rewards are drawn by chance: those of a model
that says nothing would all be the same, and no version would follow.

    python -m benchmarks.gpu_check [--tiny] [--updates N] [--eager]

``--tiny`` is the same on CPU with next to no model, over `shared_file` alone. With
``--eager`` engines compile nothing and start a minute sooner.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from rich.console import Console
from rich.table import Table

from benchmarks.gpu import peak_flops, peak_memory
from benchmarks.old_logprob_sources import EXACT, measure, others, print_costs
from benchmarks.random_models import write_model
from benchmarks.row import say
from rllib_llm_async import AsyncDecoupledPPOConfig, result_keys
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.envs.agent_env import Message, Step
from rllib_llm_async.envs.mini.suite import MiniEnv
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.registry import register_suite, suite_names

TRANSPORTS = ("shared_file", "nccl", "ipc")


@dataclass(frozen=True)
class Size:
    """What is trained, and where; the shape is one of `random_models.SHAPES`."""

    shape: str
    dtype: str
    engine: Mapping[str, Any]
    training: Mapping[str, Any]


WHOLE = Size(
    shape="Qwen3-0.6B",
    dtype="bfloat16",
    engine={"max_model_len": 2048, "max_num_seqs": 64, "gpu_memory_utilization": 0.4},
    training={
        "compute_dtype": "bfloat16",
        "episodes_per_update": 64,
        "group_size": 8,
        "num_concurrent_episodes": 64,
        "minibatch_size": 32,
    },
)
TINY = Size(
    shape="tiny",
    dtype="float32",
    engine={
        "max_model_len": 512,
        "max_num_seqs": 16,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32,
    },
    training={
        "episodes_per_update": 8,
        "group_size": 4,
        "num_concurrent_episodes": 8,
        "minibatch_size": 4,
        "max_response_tokens": 8,
    },
)


class ChanceEnv(MiniEnv):
    """Pays by chance."""

    def step_now(self, message: Message) -> Step:
        step = super().step_now(message)
        step.reward = random.random() if step.terminated or step.truncated else 0.0
        return step


class ChanceSuite(MiniTau2Suite):
    """The bundled airline, paid by chance."""

    name = "mini_tau2_by_chance"

    def make(self) -> ChanceEnv:
        return ChanceEnv(self)


def missing(transport: str, num_gpus: int) -> str | None:
    """What a transport would need here, in words; None if it is there."""
    if transport == "shared_file":
        return None
    if num_gpus == 0:
        return "needs 2 GPUs: it goes from GPU to GPU, and here is none"
    if transport == "nccl" and num_gpus < 2:
        return "needs 2 GPUs: NCCL refuses two ranks on one, and here is one"
    return None


def make_config(
    size: Size, model: Path, transport: str, num_gpus: int
) -> AsyncDecoupledPPOConfig:
    """A run over a transport: learner and engine each on a GPU, or both on one."""
    if num_gpus == 0:
        learner, runner = 0.0, 0.0
    elif transport == "ipc" or num_gpus == 1:
        learner, runner = 0.5, 0.5
    else:
        learner, runner = 1, 1
    if ChanceSuite.name not in suite_names():
        register_suite(ChanceSuite.name, ChanceSuite)
    config = (
        AsyncDecoupledPPOConfig()
        .environment(ChanceSuite.name, env_config={"domains": ["airline"]})
        .env_runners(num_env_runners=1, num_gpus_per_env_runner=runner)
        .learners(num_learners=1, num_gpus_per_learner=learner)
        .training(
            model=str(model),
            engine={"dtype": size.dtype, **size.engine},
            weight_transport=transport,
            old_logprob_source=EXACT,
            max_staleness=1,
            lr=1e-6,
            **size.training,
        )
        .debugging(seed=0)
    )
    config.validate()
    return config


def compare_all(
    config: AsyncDecoupledPPOConfig, num_gpus: int
) -> AsyncDecoupledPPOConfig:
    """The same run with all sources beside the exact one; that of actors has one."""
    on_actor = 0.2 if num_gpus else 0.0
    if num_gpus == 1:
        config.learners(num_gpus_per_learner=0.4)
    if num_gpus:
        config.env_runners(num_gpus_per_env_runner=0.4)
    config.training(
        compare_sources=others(),
        old_logit_model={"num_gpus": on_actor},
        weight_transport="shared_file",
    )
    config.validate()
    return config


def train(
    config: AsyncDecoupledPPOConfig, num_parameters: int, updates: int
) -> dict[str, float | str]:
    """Figures of a run, medians over its updates."""
    say(f"{config.chosen_transport}: engine and learner start")
    algorithm = config.build_algo()
    results = []
    try:
        for update in range(updates):
            say(f"{config.chosen_transport}: update {update + 1} of {updates}")
            results.append(algorithm.train())
        (memory,) = (
            result.get()
            for result in algorithm.learner_group.foreach_learner(
                lambda _: peak_memory()
            )
        )
    finally:
        algorithm.stop()
    learners = [result["learners"][DEFAULT_MODULE_ID] for result in results]
    runners = [result["env_runners"] for result in results]
    at_lag_0 = result_keys.at_lag("0", result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN)
    tokens_per_s = _median(learners, result_keys.TRAIN_TOKENS_PER_S)
    return {
        "transport": config.chosen_transport,
        "versions": learners[-1][result_keys.POLICY_VERSION] + 1,
        "sync_s": _median(runners, result_keys.WEIGHT_SYNC_SECONDS),
        "paused": _median(runners, result_keys.GENERATION_PAUSED_FRACTION),
        "mismatches": runners[-1][result_keys.NUM_WEIGHT_MISMATCHES],
        "version_bytes": num_parameters
        * getattr(torch, config.engine["dtype"]).itemsize,
        "log_r_d_at_lag_0": _median(learners, at_lag_0),
        "memory_bytes": memory,
        "train_tokens_per_s": tokens_per_s,
        "mfu": 6 * num_parameters * tokens_per_s / peak_flops(),
    }


def _median(results: list[dict[str, Any]], key: str) -> float:
    """Of the updates that have it; one without tokens of a lag has no number there."""
    values = [result[key] for result in results if key in result]
    return statistics.median(value for value in values if not math.isnan(value))


def print_runs(rows: list[dict[str, float | str]], left_out: Mapping[str, str]) -> None:
    """A line for each transport."""
    table = Table(
        *("transport", "versions", "transfer", "generation paused", "bytes"),
        *("mean |log r_d| at lag 0", "learner's memory", "tokens/s", "MFU"),
    )
    for row in rows:
        table.add_row(
            str(row["transport"]),
            f"{row['versions']:.0f}",
            f"{row['sync_s']:.3f} s",
            f"{row['paused']:.2%}",
            f"{row['version_bytes']:,.0f}",
            f"{row['log_r_d_at_lag_0']:.2e}",
            f"{float(row['memory_bytes']) / 1e9:.2f} GB",
            f"{row['train_tokens_per_s']:,.0f}",
            f"{row['mfu']:.1%}" if row["mfu"] else "-",
        )
    Console(width=140).print(table)
    for transport, reason in left_out.items():
        print(f"{transport}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    arguments = parser.parse_args()
    size = TINY if arguments.tiny else WHOLE
    if arguments.eager:
        size = replace(size, engine={**size.engine, "enforce_eager": True})
    num_gpus = 0 if arguments.tiny else torch.cuda.device_count()
    if num_gpus == 0 and not arguments.tiny:
        parser.error("no GPU is here; --tiny runs on CPU")
    reasons = {name: missing(name, num_gpus) for name in TRANSPORTS}
    with tempfile.TemporaryDirectory() as directory, ray_cluster():
        model = Path(directory)
        num_parameters = write_model(size.shape, model, getattr(torch, size.dtype))
        runs = [
            train(
                make_config(size, model, t, num_gpus), num_parameters, arguments.updates
            )
            for t in TRANSPORTS
            if reasons[t] is None
        ]
        print_runs(runs, {name: why for name, why in reasons.items() if why})
        config = make_config(size, model, "shared_file", num_gpus)
        sources = measure(compare_all(config, num_gpus), arguments.updates)
    print_costs(sources)
    for row in [*runs, *sources]:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
