"""An agent environment as a Gymnasium environment: one step per assistant turn.

Observations and actions are JSON texts. RLlib's stock algorithms cannot learn on them;
this is for inspecting tasks, for scripted agents and for other libraries. The env
runner of this package plays the agent environment itself.
"""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from rllib_llm_async.envs.agent_env import Message, TaskSuite
from rllib_llm_async.envs.tasks import tasks_of

_MAX_CHARS = 1 << 16


class AgentGym(gym.Env[str, str]):
    """Plays tasks of one split, chosen by the seed.

    - Observation: JSON list of the messages that are new since the last turn.
    - Action: JSON object, an OpenAI assistant message with ``content`` or
      ``tool_calls``. Any other text counts as said to the user.
    - The info of `reset` holds ``task`` and ``tools`` (OpenAI schemas), that of the
      last step what `rllib_llm_async.envs.agent_env.Step` says.

    Each instance has an event loop of its own: do not call it from within another.

    Args:
        suite: The tasks.
        split: ``train`` or ``test``.

    Raises:
        ValueError: If the suite does not know the split.
    """

    def __init__(self, suite: TaskSuite, split: str = "train") -> None:
        self.observation_space = gym.spaces.Text(
            _MAX_CHARS, min_length=0, charset=string.printable
        )
        self.action_space = gym.spaces.Text(
            _MAX_CHARS, min_length=0, charset=string.printable
        )
        self.suite = suite
        self._tasks = tasks_of(suite, split)
        self._agent_env = suite.make()
        self._loop = asyncio.Runner()
        self._is_closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        task = self._tasks[self.np_random.integers(len(self._tasks))]
        start = self._loop.run(self._agent_env.reset(task))
        info = {**start.info, "task": task.id, "tools": start.tools}
        return json.dumps(start.messages), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        step = self._loop.run(self._agent_env.step(_as_message(action)))
        return (
            json.dumps(step.messages),
            step.reward,
            step.terminated,
            step.truncated,
            step.info,
        )

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.run(self._agent_env.aclose())
            self._loop.close()


def register_gym(name: str, factory: Callable[..., TaskSuite]) -> None:
    """Makes a suite known to Gymnasium and, in all processes of a job, to Ray."""
    gym.register(f"rllib_llm_async/{name}-v0", entry_point=_maker(factory))
    register_with_ray(name, factory)


def register_with_ray(name: str, factory: Callable[..., TaskSuite]) -> None:
    """Makes a suite known to Ray, in all processes of a job."""
    from ray.tune.registry import register_env

    make = _maker(factory)
    register_env(name, lambda env_context: make(**env_context))


def _maker(factory: Callable[..., TaskSuite]) -> Callable[..., AgentGym]:
    def make(split: str = "train", **env_config: Any) -> AgentGym:
        return AgentGym(factory(**env_config), split)

    return make


def _as_message(action: str) -> Message:
    try:
        message = json.loads(action)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        message = {"content": action}
    return {**message, "role": "assistant"}
