"""How long concurrent tau2 episodes hold up the event loop that they run on.

    python -m benchmarks.tau2_concurrency [--domain D] [--num-episodes N] [--seconds S]

Needs tau2-bench (docs/tau2.md). The agent takes the reference actions at once; the user
is a server on loopback that takes ``--seconds`` for each answer and, for episodes
of natural length, stops after four of them.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time

import click
import psutil

from rllib_llm_async.envs.registry import make_suite
from tests.envs.tau2_agents import KindJudge, reference_turns

PORT = 8129
HELLO = {"role": "assistant", "content": "is there anything else?"}


async def play(suite, task) -> None:
    env = suite.make()
    await env.reset(task)
    actions = reference_turns(suite.find(task)[1])[:-1]
    for turn in [*actions, *[HELLO] * 4]:
        step = await env.step(turn)
        if step.terminated or step.truncated:
            break
    await env.aclose()


async def watch(late: list[float], busy: list[float]) -> None:
    """Notes by how much each sleep of 5 ms was late, and this thread's CPU time in it.

    On a machine with other work to do, only the second says what the episodes cost.
    """
    while True:
        before, cpu_before = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.005)
        late.append(time.perf_counter() - before - 0.005)
        busy.append(time.thread_time() - cpu_before)


async def measure(suite, tasks) -> dict[str, float]:
    late: list[float] = []
    busy: list[float] = []
    before = suite.user.metrics()
    watcher = asyncio.create_task(watch(late, busy))
    process = psutil.Process()
    memory, cpu, start = process.memory_info().rss, time.process_time(), time.time()
    await asyncio.gather(*(play(suite, task) for task in tasks))
    watcher.cancel()
    user = {key: n - before[key] for key, n in suite.user.metrics().items()}
    return {
        "wall_seconds": time.time() - start,
        "cpu_seconds": time.process_time() - cpu,
        "max_stall_seconds": max(late),
        "max_stall_cpu_seconds": max(busy),
        "user_calls": user["calls"],
        "user_seconds_per_call": user["seconds"] / user["calls"],
        "memory_mib": (process.memory_info().rss - memory) / 2**20,
        "threads": threading.active_count(),
    }


@click.command()
@click.option("--domain", default="retail")
@click.option("--num-episodes", default=64)
@click.option("--seconds", default=0.2, help="Time that the user takes to answer.")
def main(domain: str, num_episodes: int, seconds: float) -> None:
    endpoint = {
        "model": "stub",
        "base_url": f"http://127.0.0.1:{PORT}/v1",
        "api_key_env": None,
        "max_concurrency": num_episodes,
    }
    suite = make_suite(
        "tau2",
        {
            "domains": [domain],
            "user": endpoint,
            "judge": endpoint,
            "train_split": "base",
        },
    )
    suite.judge = KindJudge()
    tasks = (suite.tasks("train") * num_episodes)[:num_episodes]
    stub = [sys.executable, "-m", "tests.envs.chat_stub", "--port", str(PORT)]
    with subprocess.Popen([*stub, "--seconds", str(seconds)]) as server:
        time.sleep(2)
        try:
            for phase in ("cold", "warm"):
                print(
                    json.dumps({"phase": phase, **asyncio.run(measure(suite, tasks))})
                )
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
