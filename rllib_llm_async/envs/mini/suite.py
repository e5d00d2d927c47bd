"""Seeded tasks of bundled domains, and the environment that plays one."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field

from rllib_llm_async.envs.agent_env import EpisodeError, Message, Start, Step, TaskRef
from rllib_llm_async.envs.domains import chosen_domains
from rllib_llm_async.envs.mini.domain import Domain, ToolError
from rllib_llm_async.envs.tool_calls import parse_call
from rllib_llm_async.settings.reading import STRICT, read_settings

SPLITS = ("train", "test")
#: A task belongs to the test split if its content hashes to one of these of ten.
_TEST_TENTHS = (0, 1)
_MAX_TOOL_ERRORS = 4


class MiniSuiteSettings(BaseModel):
    """What ``env_config`` may hold beside ``domains``; meanings as in `MiniSuite`."""

    model_config = STRICT

    num_train_tasks: int = Field(ge=1, description="a whole number of 1 or more")
    num_test_tasks: int = Field(ge=1, description="a whole number of 1 or more")
    max_turns: int = Field(ge=1, description="a whole number of 1 or more turns")
    user_seconds: float = Field(ge=0, description="a number of seconds, 0 or more")


class MiniSuite:
    """Tasks of one or several domains; subclasses say which there are.

    A task's split is a hash of its content, so train and test can share none.

    Args:
        domains: Names of domains; all if None.
        num_train_tasks: Tasks per domain in the train split.
        num_test_tasks: Tasks per domain in the test split.
        max_turns: Assistant turns after which an episode is truncated.
        user_seconds: Mean time that the user takes to answer, like a simulator behind
            an endpoint; each answer takes between half and one and a half times that.

    Raises:
        ValueError: If a domain is unknown or a value cannot be.
    """

    name: ClassVar[str]
    domain_classes: ClassVar[tuple[type[Domain], ...]]

    def __init__(
        self,
        domains: Sequence[str] | None = None,
        num_train_tasks: int = 4000,
        num_test_tasks: int = 256,
        max_turns: int = 12,
        user_seconds: float = 0.0,
    ) -> None:
        settings = read_settings(
            MiniSuiteSettings,
            {
                "num_train_tasks": num_train_tasks,
                "num_test_tasks": num_test_tasks,
                "max_turns": max_turns,
                "user_seconds": user_seconds,
            },
            "env_config",
        )
        self._classes = {domain.name: domain for domain in self.domain_classes}
        self.domains = chosen_domains(domains, self._classes)
        self._num_tasks = {
            "train": settings.num_train_tasks,
            "test": settings.num_test_tasks,
        }
        self.max_turns = settings.max_turns
        self.user_seconds = settings.user_seconds

    def tasks(self, split: str) -> list[TaskRef]:
        """All tasks of a split, the same ones at every call."""
        if split not in SPLITS:
            raise ValueError(f"split: unknown {split!r}, valid: {', '.join(SPLITS)}")
        return [
            TaskRef(self.name, f"{domain}/{number}", split)
            for number in range(self._num_tasks[split])
            for domain in self.domains
        ]

    def build(self, task: TaskRef) -> Domain:
        """Draws until the content belongs to the task's split."""
        domain = self._classes[task.id.split("/")[0]]
        for draw in range(1000):
            candidate = domain(random.Random(f"{task.split}/{task.id}/{draw}"))
            tenth = zlib.crc32(candidate.signature.encode()) % 10
            if (tenth in _TEST_TENTHS) == (task.split == "test"):
                return candidate
        raise EpisodeError(f"no task drawn for {task}")

    def make(self) -> MiniEnv:
        return MiniEnv(self)


class MiniEnv:
    """Plays one task after another; see `rllib_llm_async.envs.agent_env`."""

    def __init__(self, suite: MiniSuite) -> None:
        self._suite = suite
        self._task: Domain | None = None

    async def reset(self, task: TaskRef) -> Start:
        return self.reset_now(task)

    async def step(self, message: Message) -> Step:
        if self._suite.user_seconds and not message.get("tool_calls"):
            await asyncio.sleep(self._suite.user_seconds * random.uniform(0.5, 1.5))
        return self.step_now(message)

    async def aclose(self) -> None:
        self._task = None

    @property
    def episode(self) -> Domain:
        """The task under way."""
        if self._task is None:
            raise EpisodeError("step before reset, or after the episode ended")
        return self._task

    def reset_now(self, task: TaskRef) -> Start:
        """`reset` for callers without an event loop."""
        self._task = self._suite.build(task)
        self._num_turns = self._num_tool_errors = self._num_malformed = 0
        return Start(
            messages=[
                {"role": "system", "content": self._task.policy()},
                {"role": "user", "content": self._task.first_message},
            ],
            tools=[tool.schema() for tool in self._task.tools],
            info={"domain": self._task.name},
        )

    def step_now(self, message: Message) -> Step:
        """`step` for callers without an event loop."""
        task = self.episode
        self._num_turns += 1
        calls = message.get("tool_calls")
        if isinstance(calls, list) and calls:
            answers = [self._run_tool(task, call) for call in calls]
        else:
            text = message.get("content")
            reply = task.hear(text if isinstance(text, str) else "")
            answers = [{"role": "user", "content": reply}]
        if task.ended:
            return self._finish(task, answers, "user_stop")
        if self._num_tool_errors >= _MAX_TOOL_ERRORS:
            return self._finish(task, answers, "too_many_tool_errors")
        if self._num_turns >= self._suite.max_turns:
            return self._finish(task, answers, "max_turns")
        return Step(answers)

    def _run_tool(self, task: Domain, call: Any) -> Message:
        try:
            content = task.call_tool(*self._parse_call(call))
        except ToolError as error:
            self._num_tool_errors += 1
            content = f"error: {error}"
        call_id = call.get("id") if isinstance(call, dict) else None
        return {"role": "tool", "tool_call_id": call_id, "content": content}

    def _parse_call(self, call: Any) -> tuple[str, dict[str, Any]]:
        name, arguments = parse_call(call)
        if arguments is None:
            self._num_malformed += 1
            raise ToolError("malformed call")
        return name, arguments

    def _finish(self, task: Domain, answers: list[Message], reason: str) -> Step:
        verdict = task.verdict()
        success = reason == "user_stop" and all(verdict.values())
        self._task = None
        return Step(
            answers,
            reward=float(success),
            terminated=reason != "max_turns",
            truncated=reason == "max_turns",
            info={
                "success": success,
                "domain": task.name,
                "reason": reason,
                "reward_breakdown": verdict,
                "rubric_score": sum(verdict.values()) / len(verdict),
                "num_malformed_tool_calls": self._num_malformed,
            },
        )
