"""The bundled tasks, with a book of what was played and faults on demand.

The book is a file: a line for every training episode that begins and for every one
that ends, written at once, so that it holds what a killed process did as well. It knows
nothing of the loop's own accounts.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rllib_llm_async.envs.mini.suite import MiniEnv
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite

NAME = "faulty_mini_tau2"
BEGUN, ENDED, FAULT = "begun", "ended", "fault"
HANG, NAN = "hang", "nan"


class Book:
    """Lines of one file, and the faults that wait beside it; for many processes."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._lines = self._directory / "book"

    def write(self, line: str) -> None:
        with self._lines.open("a") as file:  # one short write: lines do not mix
            file.write(f"{line}\n")

    def counts(self) -> Counter[str]:
        return Counter(self._lines.read_text().split())

    def order(self, fault: str) -> None:
        """The next training episode to get there has this fault, once."""
        (self._directory / fault).touch()

    def take(self, fault: str) -> bool:
        try:
            os.unlink(self._directory / fault)
        except FileNotFoundError:
            return False
        self.write(FAULT)
        return True


class FaultySuite(MiniTau2Suite):
    """See above; ``directory`` is that of the `Book`."""

    def __init__(self, directory: str, domains: list[str]) -> None:
        super().__init__(domains)
        self.book = Book(directory)

    def make(self) -> MiniEnv:
        return FaultyEnv(self)


class FaultyEnv(MiniEnv):
    """Only training episodes are booked and have faults."""

    async def reset(self, task):
        self._is_booked = task.split == "train"
        return await super().reset(task)

    async def step(self, message):
        if self._num_turns == 0:  # a runner that starts resets one without playing it
            self._write(BEGUN)
        if self._is_booked and self._suite.book.take(HANG):
            await asyncio.Event().wait()
        step = await super().step(message)
        if not (step.terminated or step.truncated):
            return step
        if self._is_booked and self._suite.book.take(NAN):
            return replace(step, reward=float("nan"))
        self._write(ENDED)
        return step

    def _write(self, line: str) -> None:
        if self._is_booked:
            self._suite.book.write(line)
