"""Whether users that take time keep the engine waiting, or the loop from turning.

64 concurrent episodes whose users take 200 ms to answer, against the same episodes
with users who answer at once.
"""

from __future__ import annotations

import asyncio
import time

import ray

from benchmarks.generation_vs_raw_vllm import NUM_EPISODES, started
from benchmarks.row import Row, compare
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner

USER_SECONDS = 0.2
#: How long the loop may be kept from turning.
MAX_STALL_SECONDS = 0.3


class WatchedRunner(LLMEnvRunner):
    """An env runner whose users are as slow as asked for, and whose loop is watched."""

    def start(self) -> None:
        """Waits for the engine."""
        self._engine_started.result()
        self._longest_stall = 0.0
        self._call(self._watch())

    async def _watch(self) -> None:
        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.01)
                stall = time.perf_counter() - before - 0.01
                self._longest_stall = max(self._longest_stall, stall)

        self._spawn(tick())

    def play(self, user_seconds: float) -> float:
        """Tokens per second of episodes."""
        self.suite.user_seconds = user_seconds
        self._call(self.engine._llm.reset_prefix_cache())
        tokens, start = self.engine.num_generated_tokens, time.perf_counter()
        tasks = list(self.suite.tasks("train"))[:NUM_EPISODES]
        self.evaluate_tasks(tasks, num_trials=1)
        seconds = time.perf_counter() - start
        return (self.engine.num_generated_tokens - tokens) / seconds

    def longest_stall(self) -> float:
        """Seconds, since the start."""
        return self._longest_stall


def run(repeats: int = 5) -> Row:
    """Tokens per second of both, in turns."""
    with started(WatchedRunner) as runner:
        return compare(
            "slow_users_vs_instant_ones",
            "tokens/s",
            lambda: ray.get(runner.play.remote(USER_SECONDS)),
            lambda: ray.get(runner.play.remote(0.0)),
            repeats,
        )


def event_loop_stall() -> Row:
    """The longest stall of the loop against the longest that is allowed."""
    with started(WatchedRunner) as runner:
        ray.get(runner.play.remote(USER_SECONDS))
        stall = ray.get(runner.longest_stall.remote())
    return Row(
        "event_loop_stall", stall, "s", MAX_STALL_SECONDS, stall / MAX_STALL_SECONDS
    )
