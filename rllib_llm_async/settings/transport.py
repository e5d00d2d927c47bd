"""Which way weights take from the learner to the engines, and what each way needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: What the choice looks at.
READS = (
    "weight_transport",
    "learner_sharding",
    "lora",
    "lora_sync",
    "engine",
    "num_learners",
    "num_gpus_per_learner",
    "num_env_runners",
    "num_gpus_per_env_runner",
    "num_engines_per_env_runner",
)


def chosen_transport(values: Mapping[str, Any]) -> str:
    """The name of the transport; "auto" is `shared_file`, which everything goes with.

    Args:
        values: Of `READS`.
    """
    # The others have yet to be run on GPUs (`benchmarks.gpu_check`).
    named = values["weight_transport"]
    return "shared_file" if named == "auto" else named


def check_transport(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the key and what it must be, where a transport is named in vain."""
    reason = why_not(values["weight_transport"], values)
    if reason is not None:
        yield "weight_transport", f"auto or shared_file: {reason}"


def why_not(transport: str, values: Mapping[str, Any]) -> str | None:
    """What a transport lacks, in words; None if nothing."""
    if transport not in ("nccl", "ipc"):
        return None
    return next(_lacks(transport, values), None)


def _lacks(transport: str, values: Mapping[str, Any]) -> Iterator[str]:
    on_learner = values["num_gpus_per_learner"]
    on_engine = values["num_gpus_per_env_runner"]
    num_learners, num_runners = values["num_learners"], values["num_env_runners"]
    engine = values["engine"]
    for key in ("num_gpus_per_learner", "num_gpus_per_env_runner"):
        if values[key] == 0:
            yield f"{transport} goes from GPU to GPU, and {key} is 0"
        if transport == "nccl" and values[key] % 1:
            yield f"nccl wants a whole GPU on each side, and {key} is {values[key]:g}"
    if transport == "ipc":
        if num_learners > 1:
            yield f"ipc is for one learner, and num_learners is {num_learners}"
        if (gpus := on_learner + num_runners * on_engine) > 1:
            yield (
                "ipc is for a learner and engines that share one GPU, and "
                "num_gpus_per_learner + num_env_runners x num_gpus_per_env_runner "
                f"is {gpus:g}"
            )
    if engine.get("data_parallel_size", 1) > 1:
        yield (
            f"{transport} counts on one replica per engine, and "
            f"engine.data_parallel_size is {engine['data_parallel_size']}"
        )
    if (number := values["num_engines_per_env_runner"]) > 1:
        yield (
            f"{transport} serves one engine at a time, and num_engines_per_env_runner "
            f"is {number}: they take a version together"
        )
    if values["learner_sharding"] == "fsdp2" and num_learners > 1:
        yield (
            f"{transport} keeps all weights on the first learner's GPU, and "
            "learner_sharding fsdp2 is for models that do not fit there"
        )
    if values["lora"] is not None and values["lora_sync"] != "merged":
        yield f"adapters travel as files ({transport} goes with lora_sync: merged)"
