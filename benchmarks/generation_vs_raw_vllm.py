"""An env runner's tokens per second against vLLM's own with the same requests.

One `LLMEnvRunner` plays episodes of the bundled environment while every request to its
engine is written down. The reference then sends the same prompts with the same output
lengths at the same concurrency, turn after turn within an episode, straight to the
same `AsyncLLM`. The difference is what environments, connectors, chat format and
episode keeping cost.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from benchmarks.row import Row, compare
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner

NUM_EPISODES = 256
NUM_CONCURRENT = 64
ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": NUM_CONCURRENT,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enforce_eager": True,
}

#: Requests of one episode: prompt token ids and number of generated tokens, in order.
Turns = list[tuple[list[int], int]]


class MeasuredRunner(LLMEnvRunner):
    """An env runner that can write down its requests and play them again."""

    def start(self) -> None:
        """Waits for the engine."""
        self.wait_until_started()
        self._tasks_to_play = list(self.suite.tasks("train"))[:NUM_EPISODES]
        self._recorded: list[Turns] = []

    def play(self) -> float:
        """Tokens per second of episodes."""
        self._call(self.engine._llm.reset_prefix_cache())
        turns_by_task: dict[asyncio.Task, Turns] = defaultdict(list)
        generate = type(self.engine).generate

        async def recording(context, on_piece, **kwargs):
            prompt = list(context)  # the transcript grows
            output = await generate(self.engine, context, on_piece, **kwargs)
            turns_by_task[asyncio.current_task()].append(
                (prompt, len(output.token_ids))
            )
            return output

        self.engine.generate = recording
        start = time.perf_counter()
        self.begin_evaluation(self._tasks_to_play, num_trials=1)
        self._evaluation.result()
        seconds = time.perf_counter() - start
        self._recorded = list(turns_by_task.values())
        return self._num_tokens() / seconds

    def replay(self) -> float:
        """Tokens per second of the requests that `play` wrote down."""
        self._call(self.engine._llm.reset_prefix_cache())
        start = time.perf_counter()
        self._call(self._replay())
        return self._num_tokens() / (time.perf_counter() - start)

    def _num_tokens(self) -> int:
        return sum(length for turns in self._recorded for _, length in turns)

    async def _replay(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        slots = asyncio.Semaphore(NUM_CONCURRENT)
        numbers = itertools.count()

        async def episode(turns: Turns) -> None:
            async with slots:
                for prompt, length in turns:
                    params = SamplingParams(
                        temperature=1.0,
                        max_tokens=length,
                        min_tokens=length,
                        ignore_eos=True,
                        logprobs=0,
                        flat_logprobs=True,
                        detokenize=False,
                        output_kind=RequestOutputKind.FINAL_ONLY,
                    )
                    async for _ in self.engine._llm.generate(
                        {"prompt_token_ids": prompt}, params, f"replay{next(numbers)}"
                    ):
                        pass

        await asyncio.gather(*map(episode, self._recorded))


@contextmanager
def started(runner_class: type[LLMEnvRunner]) -> Iterator[ray.actor.ActorHandle]:
    """An actor of ``runner_class``, after its ``start``."""
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .training(
            model="small_agent",
            num_concurrent_episodes=NUM_CONCURRENT,
            engine=ENGINE,
        )
    )
    config.validate()
    runner = ray.remote(runner_class).options(num_cpus=1).remote(config=config)
    ray.get(runner.start.remote())
    try:
        yield runner
    finally:
        ray.get(runner.stop.remote())


def run(repeats: int = 5) -> Row:
    with started(MeasuredRunner) as runner:
        return compare(
            "generation_vs_raw_vllm",
            "tokens/s",
            lambda: ray.get(runner.play.remote()),
            lambda: ray.get(runner.replay.remote()),
            repeats,
        )


if __name__ == "__main__":
    from rllib_llm_async.cli.cluster import ray_cluster

    with ray_cluster():
        print(run().json())
