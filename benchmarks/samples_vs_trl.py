"""Whole training updates against TRL's `GRPOTrainer`, in samples per second.

One-turn answers of the bundled agent to the first prompts of the bundled airline, 128
an update, 8 to a prompt, one optimizer step an update; both on all cores of this
machine, in float32, with the same clip, learning rate and bound on an answer. Rewards
are drawn by chance, and the learning rate moves next to nothing, so that answers keep
their length.

TRL generates with transformers, in batches of a whole update, and needs no pass for old
log-probabilities, since it is synchronous; no reference model, no checkpointing of
gradients. This package runs as it would be used, engine and learner side by side, with
exact old log-probabilities. While one has its turn the other is at rest, and the first
updates of a turn do not count: what was prepared before it is used up by then.

TRL's asynchronous trainer needs a GPU: its attention is the kernel of FlashAttention 3
(`trl/experimental/async_grpo/packing.py`) and its weights travel over NCCL.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from importlib.util import find_spec
from typing import Any

import ray

from benchmarks.generation_vs_raw_vllm import ENGINE
from benchmarks.row import MissingPackageError, Row, compare
from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.agent_env import Message, Step
from rllib_llm_async.envs.mini.suite import MiniEnv
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.registry import register_suite, suite_names
from rllib_llm_async.models.small_agent import small_agent_dir

SAMPLES_PER_UPDATE, GROUP_SIZE = 128, 8
MAX_RESPONSE_TOKENS = 64
LEARNING_RATE = 1e-7
CLIP = 0.2
#: Updates of each turn before its time is taken, and those of which it is.
SETTLING, COUNTED = 3, 5
#: Prompts that TRL draws from.
NUM_PROMPTS = 512


def reward() -> float:
    """By chance: the agent begins nearly alike each time, and learns nothing here."""
    return random.random()


class OneTurnEnv(MiniEnv):
    """Ends with the first thing that the agent says."""

    def step_now(self, message: Message) -> Step:
        return Step([], reward=reward(), terminated=True)


class OneTurnSuite(MiniTau2Suite):
    """First prompts of the bundled airline."""

    name = "one_turn"

    def make(self) -> OneTurnEnv:
        return OneTurnEnv(self)


def run(repeats: int = 2) -> Row:
    """Samples per second of both, in turns.

    Raises:
        MissingPackageError: Without TRL.
    """
    if find_spec("trl") is None:
        raise MissingPackageError("trl", "pip install trl (in the extra `dev`)")
    trl = (
        ray.remote(Trl)
        .options(
            num_cpus=1,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(os.cpu_count())}},
        )
        .remote(_prompts())
    )
    ours = Ours()
    try:
        return compare(
            "samples_vs_trl",
            "samples/s",
            ours.samples_per_second,
            lambda: ray.get(trl.samples_per_second.remote()),
            repeats,
        )
    finally:
        ours.stop()
        ray.kill(trl)


class Ours:
    """This package on the one-turn task; at rest between two turns."""

    def __init__(self) -> None:
        if OneTurnSuite.name not in suite_names():
            register_suite(OneTurnSuite.name, OneTurnSuite)
        config = (
            AsyncDecoupledPPOConfig()
            .environment(OneTurnSuite.name, env_config={"domains": ["airline"]})
            .training(
                model="small_agent",
                old_logprob_source="snapshot_old",
                max_staleness=2,
                eps_ti=1 + CLIP,
                eps_stale=1 + CLIP,
                lr=LEARNING_RATE,
                episodes_per_update=SAMPLES_PER_UPDATE,
                group_size=GROUP_SIZE,
                minibatch_size=None,
                max_response_tokens=MAX_RESPONSE_TOKENS,
                num_concurrent_episodes=2 * SAMPLES_PER_UPDATE,
                engine={**ENGINE, "max_num_seqs": SAMPLES_PER_UPDATE},
            )
        )
        self._algorithm = config.build_algo()
        self._rest(True)

    def samples_per_second(self) -> float:
        """From the start or the end of a rest to the next one."""
        self._rest(False)
        for _ in range(SETTLING):
            self._algorithm.train()
        start = time.perf_counter()
        for _ in range(COUNTED):
            self._algorithm.train()
        seconds = time.perf_counter() - start
        self._rest(True)
        return COUNTED * SAMPLES_PER_UPDATE / seconds

    def _rest(self, begins: bool) -> None:
        self._algorithm._coordination.ask("pause_training_episodes", begins)

    def stop(self) -> None:
        self._algorithm.stop()


class Trl:
    """TRL on the same prompts, for a process of its own."""

    def __init__(self, prompts: list[str]) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        self._clock = _clock()
        self._trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                small_agent_dir(), dtype="float32"
            ),
            processing_class=AutoTokenizer.from_pretrained(small_agent_dir()),
            reward_funcs=lambda completions, **_: [reward() for _ in completions],
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            callbacks=[self._clock],
            args=GRPOConfig(
                output_dir=tempfile.mkdtemp(),
                per_device_train_batch_size=SAMPLES_PER_UPDATE,
                num_generations=GROUP_SIZE,
                max_completion_length=MAX_RESPONSE_TOKENS,
                max_steps=SETTLING + COUNTED,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                epsilon=CLIP,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )

    def samples_per_second(self) -> float:
        """Of the last updates of a few."""
        self._clock.ended.clear()
        self._trainer.train()
        seconds = self._clock.ended[-1] - self._clock.ended[-1 - COUNTED]
        return COUNTED * SAMPLES_PER_UPDATE / seconds


def _clock() -> Any:
    """A callback of transformers that notes when an update ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        ended: list[float] = []  # noqa: RUF012

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended.append(time.perf_counter())

    return Clock()


def _prompts() -> list[str]:
    """First prompts as the chat template renders them."""
    suite = OneTurnSuite(["airline"])
    chat_format = ChatFormat.from_pretrained(small_agent_dir())
    starts = (suite.make().reset_now(t) for t in suite.tasks("train")[:NUM_PROMPTS])
    return [
        chat_format.tokenizer.decode(chat_format.start(start.messages, start.tools))
        for start in starts
    ]
