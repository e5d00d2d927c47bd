"""Whether users that take time keep the engine waiting, or the loop from turning.

64 concurrent episodes whose users take 200 ms to answer, against the same with users
who answer at once, both while episode follows upon episode as in training.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import ray

from benchmarks.generation_vs_raw_vllm import NUM_CONCURRENT, started
from benchmarks.row import Row, compare
from rllib_llm_async.batch import columns
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner

USER_SECONDS = 0.2
#: Until episodes are spread over all their turns, and how long tokens are counted then.
WARM_UP_SECONDS, COUNTED_SECONDS = 3.0, 8.0
#: How long the loop may be kept from turning.
MAX_STALL_SECONDS = 0.3


class WatchedRunner(LLMEnvRunner):
    """An env runner whose users are as slow as asked for, and whose loop is watched."""

    def start(self) -> None:
        """Waits for the engine."""
        self.wait_until_started()
        self._longest_stall = 0.0
        self._call(self._watch())

    async def _watch(self) -> None:
        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.01)
                stall = time.perf_counter() - before - 0.01
                self._longest_stall = max(self._longest_stall, stall)

        self._ticking = asyncio.create_task(tick())

    def play(self, user_seconds: float) -> float:
        """Tokens per second of `NUM_CONCURRENT` episodes at a time."""
        self.suite.user_seconds = user_seconds
        return self._call(self._play())

    async def _play(self) -> float:
        await self.engine._llm.reset_prefix_cache()
        tasks = itertools.cycle(self.suite.tasks("train"))

        async def one_after_another() -> None:
            while True:
                episode, _ = await self._player.play(next(tasks))
                self._player.forget([episode.custom_data[columns.EPISODE_KEY]])

        players = [
            asyncio.create_task(one_after_another()) for _ in range(NUM_CONCURRENT)
        ]
        await asyncio.sleep(WARM_UP_SECONDS)
        tokens, start = self.engine.num_generated_tokens, time.perf_counter()
        await asyncio.sleep(COUNTED_SECONDS)
        rate = (self.engine.num_generated_tokens - tokens) / (
            time.perf_counter() - start
        )
        for player in players:
            player.cancel()
        await asyncio.gather(*players, return_exceptions=True)
        return rate

    def longest_stall(self) -> float:
        """Seconds, since the start."""
        return self._longest_stall


def run(repeats: int = 3) -> Row:
    """Tokens per second of both, in turns; a seat of the engine for every episode."""
    with started(WatchedRunner) as runner:
        return compare(
            "slow_users_vs_instant_ones",
            "tokens/s",
            lambda: ray.get(runner.play.remote(USER_SECONDS)),
            lambda: ray.get(runner.play.remote(0.0)),
            repeats,
        )


def event_loop_stall() -> Row:
    """The longest stall of the loop against the longest that is allowed.

    All episodes start at once, which is the worst that happens to a loop.
    """
    with started(WatchedRunner) as runner:
        ray.get(runner.play.remote(USER_SECONDS))
        stall = ray.get(runner.longest_stall.remote())
    return Row(
        "event_loop_stall", stall, "s", MAX_STALL_SECONDS, stall / MAX_STALL_SECONDS
    )
