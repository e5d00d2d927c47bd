"""vLLM's engine process: what it starts with, and how it is ended."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from typing import Any

from rllib_llm_async.engine import NO_REGISTRATION
from rllib_llm_async.engine.ownership import OWNER
from rllib_llm_async.transport.sides import FILE_BACKEND

#: KV cache on CPU, unless ``engine: {kv_cache_memory_bytes: ...}`` says otherwise.
CPU_KV_CACHE_BYTES = 1 << 30
#: Longest that the kernel is waited for when it ends a process.
KILL_SECONDS = 5.0


def start_vllm(
    model: str,
    engine_args: Mapping[str, Any],
    seed: int,
    *,
    return_routed_experts: bool = False,
) -> tuple[Any, list[BaseProcess]]:
    """Starts vLLM on the running asyncio loop; takes seconds, in which that waits.

    Args:
        model: Directory or hub name.
        engine_args: Further `vllm.AsyncEngineArgs`.
        seed: Seed of the engine's sampling, unless ``engine_args`` hold one.
        return_routed_experts: Have outputs tell the experts of a mixture, where vLLM
            can; a warning says why it cannot.

    Returns:
        `AsyncLLM` and the processes that it has started here.

    Raises:
        RuntimeError: If the engine cannot start; says where its own words are.
    """
    from vllm.platforms import current_platform

    args = {
        **(_cpu_arguments() if current_platform.is_cpu() else {}),
        "disable_log_stats": True,
        "weight_transfer_config": {"backend": FILE_BACKEND},
        "seed": seed,
        **engine_args,
    }
    _prepare_environment(args, on_cpu=current_platform.is_cpu())
    from vllm.v1.engine.async_llm import AsyncLLM

    # Importing this registers the transfer backend where vLLM validates its name.
    from rllib_llm_async.engine import vllm_plugin
    from rllib_llm_async.engine.routed_experts import engine_arguments

    extension = vllm_plugin.EngineWorkerExtension
    others = multiprocessing.active_children()
    try:
        llm = AsyncLLM.from_engine_args(
            engine_arguments(
                return_routed_experts,
                model=model,
                logprobs_mode="processed_logprobs",
                worker_extension_cls=f"{extension.__module__}.{extension.__name__}",
                **args,
            )
        )
    except BaseException as error:
        kill(_children_beside(others))
        if isinstance(error, RuntimeError):
            raise RuntimeError(f"{error} ({_where_it_says_more()})") from error
        raise
    return llm, _children_beside(others)


def _where_it_says_more() -> str:
    """The "root cause above" of an engine in a process of its own is where the output
    of this one goes; of an actor these are files of Ray's."""
    files = {os.path.realpath(f"/proc/self/fd/{number}") for number in (1, 2)}
    return f"what it said is in {' and '.join(sorted(files))}"


def _children_beside(others: list[BaseProcess]) -> list[BaseProcess]:
    return [c for c in multiprocessing.active_children() if c not in others]


def kill(processes: list[BaseProcess]) -> None:
    """Ends processes at once, those that hang as well; they are gone afterwards."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(KILL_SECONDS)


def _prepare_environment(args: Mapping[str, Any], on_cpu: bool) -> None:
    """Sets what vLLM's engine process has to find in its environment.

    On CPU one worker shares the engine's process, torch.compile of a small sampling
    helper is skipped (it costs tens of seconds once and gains nothing), and cores are
    not pinned, because several engines on a host would choose the same. With the
    transport `ipc` the engine has to unpickle what its owner sends, handles of memory.
    In float32 Triton's attention would round the factors of its products to TF32, which
    on a GPU is far from what the trainer computes. What the user has set stays.
    """
    settings = {
        NO_REGISTRATION: "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if on_cpu:
        settings |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
    if args["weight_transfer_config"]["backend"] == "ipc":
        settings["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if args.get("dtype") == "float32":
        settings["TRITON_F32_DEFAULT"] = "ieee"
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER] = str(os.getpid())


def _cpu_arguments() -> dict[str, Any]:
    """Defaults on CPU: one worker in the engine's process, nothing compiled (see
    `_prepare_environment`), a cache of a fixed size.

    vLLM's own default of it wants nine tenths of a NUMA node's memory to be free, which
    trainers and other engines on the machine share.
    """
    arguments: dict[str, Any] = {
        "distributed_executor_backend": "uni",
        "enforce_eager": True,
    }
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return arguments
