"""Seeded tasks of the mini_tau2 domains, and the environment that plays one."""

from __future__ import annotations

import asyncio
import difflib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from rllib_llm_async.envs.agent_env import EpisodeError, Message, Start, Step, TaskRef
from rllib_llm_async.envs.mini_tau2.airline import Airline
from rllib_llm_async.envs.mini_tau2.domain import Domain, ToolError

DOMAINS: dict[str, type[Domain]] = {Airline.name: Airline}
SPLITS = ("train", "test")
#: A task belongs to the test split if its content hashes to one of these of ten.
_TEST_TENTHS = (0, 1)
_MAX_TOOL_ERRORS = 4


class MiniTau2Suite:
    """Tasks of one or several domains.

    A task's split is a hash of its content, so train and test can share none.

    Args:
        domains: Names out of `DOMAINS`; all if None.
        num_train_tasks: Tasks per domain in the train split.
        num_test_tasks: Tasks per domain in the test split.
        max_turns: Assistant turns after which an episode is truncated.
        user_seconds: Mean time that the user takes to answer, like a simulator behind
            an endpoint; each answer takes between half and one and a half times that.

    Raises:
        ValueError: If a domain is unknown or the time is negative.
    """

    name = "mini_tau2"

    def __init__(
        self,
        domains: Sequence[str] | None = None,
        num_train_tasks: int = 4000,
        num_test_tasks: int = 256,
        max_turns: int = 12,
        user_seconds: float = 0.0,
    ) -> None:
        self.domains = list(DOMAINS) if domains is None else list(domains)
        for domain in self.domains:
            if domain not in DOMAINS:
                near = difflib.get_close_matches(domain, DOMAINS, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"env_config.domains: unknown {domain!r}, did you mean {near!r}? "
                    f"Valid: {', '.join(DOMAINS)}"
                )
        self._num_tasks = {"train": num_train_tasks, "test": num_test_tasks}
        self.max_turns = max_turns
        if not user_seconds >= 0:
            raise ValueError(f"env_config.user_seconds: got {user_seconds}, need >= 0")
        self.user_seconds = user_seconds

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
        domain = DOMAINS[task.id.split("/")[0]]
        for draw in range(1000):
            candidate = domain(random.Random(f"{task.split}/{task.id}/{draw}"))
            tenth = zlib.crc32(candidate.signature().encode()) % 10
            if (tenth in _TEST_TENTHS) == (task.split == "test"):
                return candidate
        raise EpisodeError(f"no task drawn for {task}")

    def make(self) -> MiniTau2Env:
        return MiniTau2Env(self)


class MiniTau2Env:
    """Plays one task after another; see `rllib_llm_async.envs.agent_env`."""

    def __init__(self, suite: MiniTau2Suite) -> None:
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
        if message.get("tool_calls"):
            answers = [
                {"role": "tool", "tool_call_id": call.get("id"), "content": content}
                for call, content in self._run_tools(task, message["tool_calls"])
            ]
        else:
            text = message.get("content") or ""
            answers = [{"role": "user", "content": task.hear(text)}]
        if task.ended:
            return self._finish(task, answers, "user_stop")
        if self._num_tool_errors >= _MAX_TOOL_ERRORS:
            return self._finish(task, answers, "too_many_tool_errors")
        if self._num_turns >= self._suite.max_turns:
            return self._finish(task, answers, "max_turns")
        return Step(answers)

    def _run_tools(
        self, task: Domain, calls: list[dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        for call in calls:
            try:
                name, arguments = self._parse_call(call)
                yield call, task.call_tool(name, arguments)
            except ToolError as error:
                self._num_tool_errors += 1
                yield call, f"error: {error}"

    def _parse_call(self, call: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        function = call["function"]
        arguments = function["arguments"]
        try:
            parsed = json.loads(arguments)
        except (TypeError, ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict) or not isinstance(function["name"], str):
            self._num_malformed += 1
            raise ToolError("malformed call")
        return function["name"], parsed

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
                "num_malformed_tool_calls": self._num_malformed,
            },
        )
