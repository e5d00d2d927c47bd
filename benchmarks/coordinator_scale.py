"""What many runners cost the coordinator, without Ray, engines or learners.

512 runners with 64 episodes each; every group is reported by itself, every version
wakes every runner. CPU seconds of the thread that the loop runs on: the coordinator's,
and the little that the runners here take.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from types import SimpleNamespace

from benchmarks.row import Row
from rllib_llm_async.coordination.coordinator import Coordinator
from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.ledger import EpisodeFate
from rllib_llm_async.coordination.messages import (
    FinishedGroup,
    PublishedWeights,
    Report,
)
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.env_runners.episodes import EpisodeOutcome
from rllib_llm_async.envs.agent_env import TaskRef

NUM_RUNNERS, EPISODES_PER_RUNNER, GROUP_SIZE = 512, 64, 8
MAX_STALENESS = 2
#: Half of the places, so that places bind and not the bound.
EPISODES_PER_UPDATE = NUM_RUNNERS * EPISODES_PER_RUNNER // 2
#: What is promised, CPU seconds per update.
PROMISED = 0.2
#: Wall time of an update: what is planned anew so often must not be per group.
UPDATE_SECONDS = 8.0
AT_ONCE = 16
OUTCOMES = [
    EpisodeOutcome(
        TaskRef("shop", "1", "train"), key, "shop", True, 1.0, 4, 100, 1, 0.0, 0, {}, ""
    )
    for key in range(GROUP_SIZE)
]


class FakeRunner:
    """Takes tickets and weights; its groups end when they are told to."""

    def __init__(self, coordinator: Coordinator, number: int) -> None:
        self._coordinator = coordinator
        self._number = number
        self._report = Report(number, -1, EPISODES_PER_RUNNER)
        self.under_way: dict[int, Ticket] = {}

    async def serve(self) -> None:
        handle = SimpleNamespace(hand_out=SimpleNamespace(options=_hand_out))
        session = await self._coordinator.register(
            handle, self._number, ["shop"] * 100, EPISODES_PER_RUNNER
        )
        self._report.session, serial = session, 0
        while True:
            orders = await self._coordinator.orders(self._number, session, serial, -1)
            assert not orders.retired
            if orders.weights is not None:
                serial = orders.weights.serial
                self._report.engine_version = orders.weights.version
                await self._coordinator.report(self._report)
            self.under_way |= {ticket.number: ticket for ticket in orders.tickets}

    async def finish(self, ticket: Ticket) -> None:
        del self.under_way[ticket.number]
        self._report.num_places += ticket.num_episodes
        self._report.finished = [FinishedGroup(ticket, OUTCOMES)]
        self._report.progress = dict.fromkeys(self.under_way, 100)
        self._report.doing = dict.fromkeys(self.under_way, "task 1, waiting 1 s for x")
        await self._coordinator.report(self._report)
        self._report.finished = []


def run(num_updates: int = 5) -> Row:
    """CPU seconds of an update against what is promised."""
    seconds = statistics.median(asyncio.run(cpu_per_update(NUM_RUNNERS, num_updates)))
    return Row(
        "coordinator_cpu_per_update_at_512_runners",
        seconds,
        "s",
        PROMISED,
        seconds / PROMISED,
    )


async def cpu_per_update(
    num_runners: int, num_updates: int, update_seconds: float = UPDATE_SECONDS
) -> list[float]:
    """CPU seconds of each update after the first, with so many runners.

    Args:
        num_runners: Of them, with a batch in proportion.
        num_updates: That are measured.
        update_seconds: Over which the groups of an update end.
    """
    batch_size = EPISODES_PER_UPDATE * num_runners // NUM_RUNNERS
    coordinator = Coordinator(
        Dispatcher(batch_size, MAX_STALENESS, GROUP_SIZE), MAX_STALENESS
    )
    await _publish(coordinator, 0)
    runners = [FakeRunner(coordinator, number) for number in range(num_runners)]
    playing = [asyncio.create_task(runner.serve()) for runner in runners]
    groups_per_second = batch_size / GROUP_SIZE / update_seconds
    playing.append(asyncio.create_task(_finish_groups(runners, groups_per_second)))
    seconds = []
    for version in range(num_updates + 1):
        started = time.thread_time()
        learners = await _update(coordinator, version, update_seconds / 2)
        seconds.append(time.thread_time() - started - learners)
    for task in playing:
        task.cancel()
    await asyncio.gather(*playing, return_exceptions=True)
    return seconds[1:]


async def _finish_groups(runners: list[FakeRunner], per_second: float) -> None:
    """Groups end at one runner after the other.

    `AT_ONCE` at a time, lest what is measured is how this process wakes up.
    """
    due = time.perf_counter()
    for count, runner in enumerate(itertools.cycle(runners)):
        if count % AT_ONCE == 0:
            due += AT_ONCE / per_second
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        if runner.under_way:
            await runner.finish(next(iter(runner.under_way.values())))


async def _update(
    coordinator: Coordinator, version: int, training_seconds: float
) -> float:
    """Waits for a batch and trains; returns CPU seconds that are the learners'."""
    while not (batch := await coordinator.next_batch(1.0)).groups:
        pass
    started = time.thread_time()
    fates = [
        EpisodeFate(group.ticket.number, outcome.key, outcome.num_tokens)
        for group in batch.groups
        for outcome in group.outcomes
    ]
    learners = time.thread_time() - started
    await asyncio.sleep(training_seconds)
    await _publish(coordinator, version + 1)
    await coordinator.settle(fates)
    await coordinator.consumed()
    return learners


async def _publish(coordinator: Coordinator, version: int) -> None:
    serial = await coordinator.announce(version)
    newest = PublishedWeights(version, None, None, serial=serial)  # type: ignore[arg-type]
    await coordinator.publish([newest])


def _hand_out(num_returns: int) -> SimpleNamespace:
    async def nothing() -> None: ...

    def remote(numbers: Sequence[int]) -> list:
        return [nothing(), *numbers]

    return SimpleNamespace(remote=remote)
