"""Success of a model on held-out tasks, by plain batched Hugging Face generation.

Neither vLLM nor Ray takes part, so the figure is an independent check of both. Turns
are sampled at temperature 1 without truncation, in groups per task: a group that holds
successes and failures is one that group-relative advantages can learn from.

    python -m rllib_llm_async.models.small_agent.evaluate [--model DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.envs.mini_tau2.suite import MiniTau2Env, MiniTau2Suite
from rllib_llm_async.models.chat_format import ChatFormat
from rllib_llm_async.models.small_agent import small_agent_dir

MAX_TURN_TOKENS = 96


@dataclass(frozen=True)
class SampledSuccess:
    """What `evaluate` measured."""

    num_tasks: int
    group_size: int
    success_rate: float
    #: Share of tasks with at least one success in the group.
    pass_at_group: float
    #: Share of groups with both successes and failures.
    mixed_groups: float


class _Episode:
    """One dialogue under way: its environment and all token ids so far."""

    def __init__(self, env: MiniTau2Env, task: TaskRef, chat_format: ChatFormat):
        start = env.reset_now(task)
        self.env = env
        self.chat_format = chat_format
        self.tokens = chat_format.start(start.messages, start.tools)
        self.success: bool | None = None

    def take_turn(self, turn: list[int]) -> None:
        step = self.env.step_now(self.chat_format.parse(turn))
        if step.terminated or step.truncated:
            self.success = step.info["success"]
        else:
            self.tokens += turn
            self.tokens += self.chat_format.extend(step.messages, last_turn=turn)


def evaluate(
    model_dir: str | Path,
    suite: MiniTau2Suite,
    tasks: Sequence[TaskRef],
    *,
    group_size: int = 8,
    batch_size: int = 256,
    greedy: bool = False,
    seed: int = 0,
) -> SampledSuccess:
    """Plays every task ``group_size`` times.

    Args:
        model_dir: Hugging Face directory.
        suite: Where the tasks come from.
        tasks: At least one.
        group_size: Episodes per task.
        batch_size: Episodes that are generated side by side.
        greedy: Take the likeliest token instead of sampling.
        seed: Of the sampling.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    chat_format = ChatFormat.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    episodes = [
        _Episode(suite.make(), task, chat_format)
        for task in tasks
        for _ in range(group_size)
    ]
    for start in range(0, len(episodes), batch_size):
        running = episodes[start : start + batch_size]
        while running:
            turns = _generate(model, chat_format, [e.tokens for e in running], greedy)
            for episode, turn in zip(running, turns, strict=True):
                episode.take_turn(turn)
            running = [e for e in running if e.success is None]
    successes = [
        sum(bool(e.success) for e in episodes[start : start + group_size])
        for start in range(0, len(episodes), group_size)
    ]
    return SampledSuccess(
        num_tasks=len(tasks),
        group_size=group_size,
        success_rate=sum(successes) / len(episodes),
        pass_at_group=sum(n > 0 for n in successes) / len(tasks),
        mixed_groups=sum(0 < n < group_size for n in successes) / len(tasks),
    )


def _generate(
    model: Any, chat_format: ChatFormat, prompts: list[list[int]], greedy: bool
) -> list[list[int]]:
    """One turn for every prompt: generated ids, with the eos where it was reached."""
    import torch

    longest = max(map(len, prompts))
    pad = chat_format.tokenizer.pad_token_id
    padded = [[pad] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    with torch.inference_mode():
        generated = model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            max_new_tokens=MAX_TURN_TOKENS,
            do_sample=not greedy,
            # No truncation: what is measured is the distribution that RL starts from.
            **({} if greedy else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}),
            eos_token_id=chat_format.stop_token_ids,
            pad_token_id=pad,
        )
    return [_until_eos(row, chat_format) for row in generated[:, longest:].tolist()]


def _until_eos(ids: list[int], chat_format: ChatFormat) -> list[int]:
    eos = chat_format.eos_token_id
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=small_agent_dir())
    parser.add_argument("--num-tasks", type=int, default=100)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    suite = MiniTau2Suite(["airline"])
    measured = evaluate(
        arguments.model,
        suite,
        suite.tasks("test")[: arguments.num_tasks],
        group_size=1 if arguments.greedy else arguments.group_size,
        greedy=arguments.greedy,
        seed=arguments.seed,
    )
    print(json.dumps(asdict(measured), indent=2))


if __name__ == "__main__":
    main()
