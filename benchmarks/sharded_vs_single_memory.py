"""Memory of a learner that shares the weights with another one, against one alone.

A model whose weights outweigh its activations, trained for two updates with EWMA
weights and snapshots; two processes over gloo, then one. What is compared is how far
the resident memory of a learner's process grew at its peak, from before the model is
loaded (the bundled agent was trained in it before: code is loaded, too): weights,
gradients, Adam's moments, old versions, and whatever else it took.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.learner_vs_bare_torch import demonstrated_episodes
from benchmarks.row import Row
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.sizing.memory import size_of

NUM_UPDATES = 2
NUM_GROUPS, GROUP_SIZE = 2, 2
#: 53 million parameters, 213 MB in float32, in layers that are small beside the whole,
#: as those of large models are.
SIZES = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 64,
}
#: glibc keeps what is freed in pieces smaller than this, which it raises by itself.
MMAP_THRESHOLD = 1 << 18


def run() -> Row:
    with _model() as model:
        shared, alone = (max(peaks(model, count, NUM_UPDATES)) for count in (2, 1))
    return Row("sharded_vs_single_memory", shared, "MB", alone, shared / alone)


def loading() -> Row:
    """What a learner of two takes to get its share, against the whole weights."""
    with _model() as model:
        shared = max(peaks(model, 2, 0))
        (file,) = Path(model).glob("*.safetensors")
        whole = file.stat().st_size / 1e6
    return Row("sharded_loading_vs_model_memory", shared, "MB", whole, shared / whole)


def predicted() -> Row:
    """What a learner of two takes, against what `rllib size` says of it."""
    with _model() as model:
        # One update more, which finds all the versions there that it may use.
        shared = max(peaks(model, 2, NUM_UPDATES + 1))
        said, beside = size_of(_config(2, model, NUM_UPDATES)).places[:2]
    versions = sum(p.nbytes for p in beside.parts if p.what.startswith("old versions"))
    told = (said.nbytes + versions) / 1e6
    return Row("learner_memory_vs_size", shared, "MB", told, shared / told)


@contextlib.contextmanager
def _model() -> Iterator[str]:
    """A directory with the weights; meanwhile processes give back what they free."""
    with tempfile.TemporaryDirectory() as model:
        config = AutoConfig.from_pretrained(small_agent_dir())
        for key, value in SIZES.items():
            setattr(config, key, value)
        config.layer_types = ["full_attention"] * config.num_hidden_layers
        AutoModelForCausalLM.from_config(config).save_pretrained(model)
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MMAP_THRESHOLD)
        try:
            yield model
        finally:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]


def peaks(model: str, num_learners: int, num_updates: int) -> list[float]:
    """By learner, the growth of its process in MB."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (num_learners, port, model, folder, num_updates)
        mp.spawn(_learn, arguments, nprocs=num_learners)
        return [float(file.read_text()) for file in Path(folder).iterdir()]


def _learn(
    rank: int, num_learners: int, port: int, model: str, folder: str, num_updates: int
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=num_learners)
    _train(rank, num_learners, "small_agent", num_updates)
    before = psutil.Process().memory_info().rss
    _train(rank, num_learners, model, num_updates)
    peak = max_resident_bytes() - before
    Path(folder, str(rank)).write_text(str(peak / 1e6))
    dist.destroy_process_group()


def _train(rank: int, num_learners: int, model: str, num_updates: int) -> None:
    config = _config(num_learners, model, num_updates)
    episodes = demonstrated_episodes()[: NUM_GROUPS * GROUP_SIZE]
    for number, episode in enumerate(episodes):
        episode.custom_data[columns.GROUP_ID] = number // GROUP_SIZE
        episode.rewards.data[-1] = float(number % 2)  # for a gradient
    share = episodes[rank * GROUP_SIZE :][: len(episodes) // num_learners]
    learner = config.build_learner(
        spaces={DEFAULT_MODULE_ID: (TOKENS_SPACE, TOKENS_SPACE)}
    )
    for _ in range(num_updates):
        learner.update(training_data=TrainingData(episodes=share))
    if learner._version != num_updates:
        raise RuntimeError("an update had no signal: no moments, no old versions")


def _config(num_learners: int, model: str, num_updates: int) -> AsyncDecoupledPPOConfig:
    return (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .learners(num_learners=num_learners)
        .training(
            model=model,
            learner_sharding="fsdp2",
            old_logprob_source="auto" if num_updates else "current_recompute",
            max_staleness=NUM_UPDATES,
            group_size=GROUP_SIZE,
            episodes_per_update=NUM_GROUPS * GROUP_SIZE,
            minibatch_size=None,
            micro_batch_tokens=256,
            gradient_checkpointing=True,
            eps_ti=1e6,
            discrepancy_weight="none",
            engine={"dtype": "float32"},
        )
    )


def max_resident_bytes() -> int:
    """The largest resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(run().json())
