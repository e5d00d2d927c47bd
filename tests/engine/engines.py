"""Engines of the bundled agent, small enough for tests."""

import asyncio
import os
import sys

from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.models.small_agent import small_agent_dir


def small_engine(
    max_response_tokens=200, engine_timeout_s=300.0, weights=None, **engine_args
):
    """Not started yet; no token ends a turn."""
    return VLLMEngine(
        str(small_agent_dir()),
        {
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 16,
            "kv_cache_memory_bytes": 64 << 20,
            "block_size": 32,
            "enforce_eager": True,
            **engine_args,
        },
        temperature=1.0,
        max_response_tokens=max_response_tokens,
        stop_token_ids=[],
        seed=0,
        engine_timeout_s=engine_timeout_s,
        weights=weights,
    )


def children(pid):
    """Pids of a process's children, from the kernel."""
    pids = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            pids += map(int, file.read().split())
    return pids


async def _main(backend):
    engine = small_engine(distributed_executor_backend=backend)
    await engine.start()
    print("started", flush=True)
    await asyncio.sleep(600)


if __name__ == "__main__":  # an owner, to be killed
    asyncio.run(_main(sys.argv[1]))
