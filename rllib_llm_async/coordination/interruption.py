"""`interrupt_sync` between learners and engines: stop, score, go on.

A learner stops all engines before it replaces a version. Each runner hands out what it
sampled under the version; each learner scores its share and gets the scores of all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ray

#: A runner that is silent for longer has died; nobody else would notice, since the
#: driver waits for the learners, and they for the runners.
TIMEOUT_SECONDS = 60.0


@dataclass
class Interruption:
    """Generation stopped, so that learners score what was sampled under a version.

    ``sampled`` and ``scores`` are references, one per runner and per learner.
    """

    version: int
    waiting_for: set[int]
    sampled: list[ray.ObjectRef] = field(default_factory=list)
    scores: list[ray.ObjectRef] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def all_sampled(self) -> list[ray.ObjectRef]:
        """Waits for the runners, for `TIMEOUT_SECONDS`; silent ones are left out."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self.changed:
                await self.changed.wait_for(lambda: not self.waiting_for)
        except TimeoutError:
            self.waiting_for.clear()
        return self.sampled

    async def answer(self, runner: int, sampled: list[ray.ObjectRef]) -> None:
        """A runner has stopped; it hands out what it sampled, or nothing as it died."""
        if runner in self.waiting_for:
            async with self.changed:
                self.waiting_for.discard(runner)  # may have been left out meanwhile
                self.sampled += sampled
                self.changed.notify_all()

    async def all_scores(
        self, scores: list[ray.ObjectRef], num_learners: int
    ) -> list[ray.ObjectRef]:
        """Adds one learner's scores; returns those of all once all are there."""
        async with self.changed:
            self.scores += scores
            self.changed.notify_all()
            await self.changed.wait_for(lambda: len(self.scores) >= num_learners)
        return self.scores
