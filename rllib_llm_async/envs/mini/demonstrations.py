"""Dialogues of the scripted demonstrator, perfect or deliberately erring."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rllib_llm_async.envs.agent_env import Message, TaskRef, ToolSchema
from rllib_llm_async.envs.mini.domain import Flaws
from rllib_llm_async.envs.mini.suite import MiniSuite


@dataclass(frozen=True)
class Demonstration:
    """One dialogue, from the system message to the environment's last answer."""

    messages: list[Message]
    tools: list[ToolSchema]
    success: bool


def demonstrate(
    suite: MiniSuite,
    task: TaskRef,
    *,
    shortcut_rate: float = 0.0,
    slip_rate: float = 0.0,
    seed: int = 0,
) -> Demonstration:
    """Plays a task; see `Flaws` for the two rates, probabilities per occasion."""
    env = suite.make()
    start = env.reset_now(task)
    flaws = Flaws(random.Random(f"{seed}/{task.id}"), shortcut_rate, slip_rate)
    demonstrator = env.episode.demonstrate(flaws)
    messages = list(start.messages)
    message = next(demonstrator)
    while True:
        messages.append(message)
        step = env.step_now(message)
        messages += step.messages
        if step.terminated or step.truncated:
            return Demonstration(messages, start.tools, step.info["success"])
        try:
            message = demonstrator.send(step.messages)
        except StopIteration:
            return Demonstration(messages, start.tools, False)
