"""The actor between learners and engines: newest weights, and who may start what.

Learners put weights into Ray's object store and hand this actor the reference; env
runners long-poll it. So weights go from learner to engine over Ray's own transfer,
never through the driver, a runner that (re)starts finds the current version by
itself, and an update never queues behind a runner's `sample()` call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field, replace

import ray

from rllib_llm_async.coordination.ledger import EpisodeFate, Ledger
from rllib_llm_async.coordination.staleness_gate import StalenessGate, Ticket
from rllib_llm_async.engine.arrival_check import ExpectedArrival


@dataclass(frozen=True)
class PublishedWeights:
    """One policy version on its way to the engines.

    ``serial`` numbers publications; after a restore an older version comes again.
    ``weights`` refers to the bytes of a safetensors file, ``expected`` is what
    `VLLMEngine.install` checks the arrival with. ``trainer_weights`` refers to the
    trained parameters by name, in their own dtype, where a run has old-logit actors.
    """

    version: int
    weights: ray.ObjectRef
    expected: ExpectedArrival
    trainer_weights: ray.ObjectRef | None = None
    serial: int = 0


@dataclass
class Interruption:
    """Generation stopped, so that learners score what was sampled under a version.

    ``sampled`` and ``scores`` are references, one per runner and per learner.
    """

    version: int
    waiting_for: set[int]
    sampled: list[ray.ObjectRef] = field(default_factory=list)
    scores: list[ray.ObjectRef] = field(default_factory=list)


class WeightChannel:
    """Async actor; every method runs on its one event loop, so no lock is needed.

    Args:
        episodes_per_update: Episodes that one learner update consumes.
        max_staleness: Bound on the age of a token at its update, in versions.
    """

    #: Long polls return after this long, so that a caller notices its own shutdown.
    POLL_SECONDS = 5.0
    #: A runner that is silent for longer has died; nobody else would notice, since
    #: the driver waits for the learners, and they for the runners.
    INTERRUPTION_TIMEOUT_SECONDS = 60.0

    def __init__(self, episodes_per_update: int, max_staleness: int) -> None:
        self._gate = StalenessGate(episodes_per_update, max_staleness)
        self._ledger = Ledger()
        self._max_staleness = max_staleness
        self._published: PublishedWeights | None = None
        self._trainer_weights: list[PublishedWeights] = []
        self._interruption: Interruption | None = None
        self._engine_versions: dict[int, int] = {}
        self._training_paused = False
        self._changed = asyncio.Condition()

    async def publish(self, published: list[PublishedWeights]) -> None:
        """Makes a version current (in a list, lest Ray resolves the reference)."""
        (newest,) = published
        serial = self._published.serial + 1 if self._published else 1
        self._published = replace(newest, serial=serial)
        self._gate.learner_version = self._published.version
        if self._published.trainer_weights is not None:
            oldest = self._published.version - self._max_staleness
            self._trainer_weights = [
                *(p for p in self._trainer_weights if p.version >= oldest),
                self._published,
            ]
        await self._notify()

    async def trainer_weights(
        self, after_serial: int
    ) -> list[tuple[int, int, ray.ObjectRef]]:
        """Serial, version and trained weights of what may still be needed."""
        return [
            (p.serial, p.version, p.trainer_weights)
            for p in self._trainer_weights
            if p.serial > after_serial
        ]

    async def newest(self, than_serial: int) -> list[PublishedWeights]:
        """Waits for a publication after ``than_serial``; empty on time-out."""

        def is_newer() -> bool:
            return self._published is not None and self._published.serial > than_serial

        await self._wait_until(is_newer)
        return [self._published] if self._published and is_newer() else []

    async def interrupt(self, version: int) -> list[ray.ObjectRef]:
        """Stops all engines; returns what they sampled under the outgoing version.

        Called by every learner of a run; generation goes on with the next version.

        Returns:
            References to lists of token columns, one per runner. A runner that does
            not answer within ``INTERRUPTION_TIMEOUT_SECONDS`` is left out.
        """
        if self._interruption is None or self._interruption.version != version:
            self._interruption = Interruption(version, set(self._engine_versions))
            await self._notify()
        interruption = self._interruption
        deadline = time.monotonic() + self.INTERRUPTION_TIMEOUT_SECONDS
        while interruption.waiting_for and time.monotonic() < deadline:
            await self._wait_until(lambda: not interruption.waiting_for)
        interruption.waiting_for.clear()
        return interruption.sampled

    async def interruption(self, runner: int, after_version: int) -> list[int]:
        """Waits for an interruption; its version in a list, empty on time-out."""

        def has_to_stop() -> list[int]:
            current = self._interruption
            if (
                current is None
                or current.version <= after_version
                or runner not in current.waiting_for
            ):
                return []
            return [current.version]

        await self._wait_until(has_to_stop)
        return has_to_stop()

    async def interrupted(self, runner: int, sampled: list[ray.ObjectRef]) -> None:
        """A runner has stopped and hands out what it sampled."""
        current = self._interruption
        if current is not None and runner in current.waiting_for:
            current.waiting_for.remove(runner)
            current.sampled += sampled
            await self._notify()

    async def share_scores(
        self, version: int, scores: list[ray.ObjectRef], num_learners: int
    ) -> list[ray.ObjectRef]:
        """Takes one learner's scores; returns those of all once all are there."""
        current = self._interruption
        if current is None or current.version != version:
            raise RuntimeError(f"version {version} has not been interrupted")
        current.scores += scores
        await self._notify()
        while len(current.scores) < num_learners:
            await self._wait_until(lambda: len(current.scores) >= num_learners)
        return current.scores

    async def outstanding(self, runner: int) -> set[int]:
        """Numbers of the runner's groups that are still to be trained on."""
        return self._gate.outstanding(runner)

    async def register_runner(self, runner: int) -> int:
        """Announces a (re)started runner; returns the episodes its forerunner lost."""
        return await self.lose_runner(runner)

    async def lose_runner(self, runner: int) -> int:
        """Forgets what a dead runner had under way; returns how many episodes.

        Others would wait for it otherwise: its groups have deadlines, too.
        """
        self._engine_versions.pop(runner, None)
        if self._interruption is not None:
            self._interruption.waiting_for.discard(runner)
        lost = self._gate.lose_runner(runner)
        await self._notify()
        return lost

    async def forget_episodes(self) -> None:
        """Forgets all groups and engine versions, before a checkpoint is restored."""
        self._gate.forget()
        self._trainer_weights.clear()
        self._interruption = None
        self._engine_versions.clear()

    async def installed(self, runner: int, version: int) -> None:
        """Records which version a runner's engine samples with."""
        self._engine_versions[runner] = version
        await self._notify()

    async def admit(self, runner: int, num_episodes: int) -> Ticket | None:
        """Waits until the runner may start a group; None on time-out."""
        ticket = None

        def admitted() -> bool:
            nonlocal ticket
            if not self._training_paused and runner in self._engine_versions:
                ticket = self._gate.admit(
                    runner, self._engine_versions[runner], num_episodes
                )
            return ticket is not None

        await self._wait_until(admitted)
        return ticket

    async def consume(self, numbers: list[int]) -> None:
        """Records that groups were trained on or dropped, which makes room."""
        self._gate.consume(numbers)
        await self._notify()

    async def settle(self, fates: list[EpisodeFate]) -> None:
        """Takes what a learner made of the episodes of its share of an update."""
        self._ledger.settle(fates)

    async def next_batch(self, delivered: list[int]) -> list[int]:
        """Numbers of the groups to train on now; empty: wait for more.

        Args:
            delivered: Groups that have reached the caller since the last call.
        """
        for number in delivered:
            self._gate.deliver(number)
        return self._gate.next_batch()

    async def pause_training_episodes(self, paused: bool) -> None:
        """Stops (or resumes) starting training groups, for an evaluation."""
        self._training_paused = paused
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait_until(self, predicate) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(predicate), self.POLL_SECONDS
                )


def create_weight_channel(
    episodes_per_update: int, max_staleness: int
) -> ray.actor.ActorHandle:
    """Starts the actor; it holds references only and takes no CPU of its own."""
    return (
        ray.remote(WeightChannel)
        .options(num_cpus=0, max_concurrency=1000)
        .remote(episodes_per_update, max_staleness)
    )
