"""The episodes of one env runner: an asyncio service that follows the coordinator.

It plays the groups that it is given tickets for, installs weights as they come, stops
for learners that score what was sampled, and reports what became of everything. A
session with the coordinator may end (the runner was silent for too long, a checkpoint
was restored): all that is under way then counts for nothing, and a new one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_llm_async.batch import columns
from rllib_llm_async.coordination.coordinator_state import RESTORED
from rllib_llm_async.coordination.messages import (
    FinishedGroup,
    GivenUpGroup,
    LostTry,
    Orders,
    PublishedWeights,
    Report,
)
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.engine.engines import Engines
from rllib_llm_async.engine.vllm_engine import VLLMEngine, WeightMismatchError
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.env_runners.replay import Replay, record_of
from rllib_llm_async.env_runners.transcript import Progress, Transcript, sampled_under
from rllib_llm_async.envs.agent_env import EpisodeError, TaskRef
from rllib_llm_async.transport.node_weights import to_its_end
from rllib_llm_async.transport.shipment import SupersededError
from rllib_llm_async.transport.sides import EngineSide

#: A runner with nothing new reports after this long what it waits for.
QUIET_REPORT_SECONDS = 2.0


class EpisodeService:
    """Use from one asyncio loop, the engine's.

    Args:
        runner: Number of the env runner.
        engine: Started.
        player: Plays the episodes.
        tasks: Of the suite, for training.
        capacity: Episodes at once.
        seed: Of all sampling, by number of group and member; None: whatever comes.
        weights: Brings them to the engine.
        on_failure: Called with what ends the service for good.
    """

    def __init__(
        self,
        runner: int,
        engine: VLLMEngine | Engines,
        player: EpisodePlayer,
        tasks: Sequence[TaskRef],
        capacity: int,
        seed: int | None,
        weights: EngineSide,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._player = player
        self._tasks = tasks
        self._capacity = capacity
        self._seed = seed
        self._weights = weights
        self._on_failure = on_failure
        self._coordinator: Any = None
        self._handle: Any = None
        self._session: asyncio.Task | None = None
        self._changing = asyncio.Lock()
        self._installed = asyncio.Condition()
        self._begin_session()

    def _begin_session(self) -> None:
        self._report = Report(self._runner, -1, self._capacity)
        self._news = asyncio.Event()
        self._under_way: dict[int, tuple[TaskRef, list[Progress]]] = {}
        #: Episodes of finished groups, until the coordinator fetches them.
        self._finished: dict[int, list[SingleAgentEpisode]] = {}
        #: Members of finished groups, until the groups are settled.
        self._kept: dict[int, list[Progress]] = {}
        self._playing: dict[int, asyncio.Task] = {}
        self._serial = self._installed_serial = 0
        self._newest: PublishedWeights | None = None
        self._weights_came = asyncio.Event()
        self._answered = -1
        #: Held while the engine's weights are exchanged, or it is stopped for good.
        self._exchanging = asyncio.Lock()

    async def serve(
        self, coordinator: ray.actor.ActorHandle, handle: ray.actor.ActorHandle
    ) -> None:
        """Follows a coordinator from now on, instead of the one before, if any.

        Args:
            coordinator: Of the run.
            handle: Actor whose ``hand_out`` calls this object's.
        """
        # One after the other: a session that takes its time to end would be joined by
        # two new ones.
        async with self._changing:
            await self.stop()
            self._coordinator = coordinator
            self._handle = handle
            self._session = asyncio.create_task(self._serve())
            self._session.add_done_callback(self._session_ended)

    async def stop(self) -> None:
        """Ends all episodes of training; nobody hears of them."""
        session, self._session = self._session, None
        if session is not None:
            session.cancel()
            await asyncio.gather(session, return_exceptions=True)

    def hand_out(self, numbers: Sequence[int]) -> list[list[SingleAgentEpisode]]:
        """The episodes of finished groups, once; empty for one that is unknown.

        May be called from another thread.
        """
        return [self._finished.pop(number, []) for number in numbers]

    async def under_way(self, numbers: Sequence[int]) -> dict[int, list[Any]]:
        """What a checkpoint keeps of groups that the coordinator does not have yet.

        Args:
            numbers: Of the groups.

        Returns:
            For each that is known here, of each member `record_of` its newest try, or
            what that is replayed from; None for one that has not begun.
        """
        groups = {number: members for number, (_, members) in self._under_way.items()}
        groups |= self._kept
        return {
            number: [_record_of(member) for member in groups[number]]
            for number in numbers
            if number in groups
        }

    async def has_installed(self, serial: int) -> None:
        """Waits until the engine samples with these weights, or newer ones.

        Args:
            serial: `PublishedWeights.serial`.
        """
        async with self._installed:
            await self._installed.wait_for(lambda: self._installed_serial >= serial)

    def _session_ended(self, session: asyncio.Task) -> None:
        if not session.cancelled() and session.exception() is not None:
            self._on_failure(_first_leaf(session.exception()))

    async def _serve(self) -> None:
        # The driver brings a new coordinator when this one has died.
        with contextlib.suppress(ActorDiedError):
            while True:
                await self._serve_one_session()

    async def _serve_one_session(self) -> None:
        self._begin_session()
        session = await self._coordinator.register.remote(
            self._handle,
            self._runner,
            [task.domain for task in self._tasks],
            self._capacity,
        )
        self._report.session = session
        parts = [
            asyncio.create_task(part)
            for part in (
                self._follow_orders(session),
                self._install_weights(),
                self._send_reports(),
            )
        ]
        try:
            # Returns when the session is over; raises what a part raises.
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            tasks = [*parts, *self._playing.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._player.transcripts.clear()

    # --- Orders -------------------------------------------------------------------

    async def _follow_orders(self, session: int) -> None:
        """Returns when the session is over."""
        while True:
            orders: Orders = await self._coordinator.orders.remote(
                self._runner, session, self._serial, self._answered
            )
            if orders.retired:
                return
            self._forget(orders.settled)
            if orders.interruption is not None:
                await self._stop_for(orders.interruption, session)
            if orders.weights is not None:
                self._newest = orders.weights
                self._serial = orders.weights.serial
                self._weights_came.set()
            for ticket in orders.tickets:
                records = orders.records.get(ticket.number)
                self._play(
                    ticket.number,
                    self._run_group(ticket, records or [None] * ticket.num_episodes),
                )

    async def _install_weights(self) -> None:
        """Brings the newest weights into the engine, and none that are not."""
        while True:
            await self._weights_came.wait()
            self._weights_came.clear()
            published = self._newest
            assert published is not None
            try:
                async with (
                    self._weights.at_hand(published.weights) as arrived,
                    self._exchanging,
                ):
                    if published.version <= self._answered:
                        # Learners have scored what was sampled under it: nobody can
                        # score more. The engine waits for the version after it.
                        continue
                    # A session may end meanwhile. An engine whose weights are
                    # exchanged by half would die at its next step.
                    await to_its_end(
                        self._engine.install(
                            published.version, arrived, published.expected
                        )
                    )
            except SupersededError:
                continue  # the next order has those that are newer
            except WeightMismatchError:
                if not self._weights.doubt(published.weights):
                    raise
                self._weights_came.set()
                continue
            self._report.engine_version = published.version
            self._news.set()
            self._installed_serial = published.serial
            async with self._installed:
                self._installed.notify_all()

    async def _stop_for(self, version: int, session: int) -> None:
        """Answers learners that score what was sampled before the weights change."""
        async with self._exchanging:
            await self._engine.interrupt()
            self._answered = version
            sampled = sampled_under(version, self._transcripts())
        await self._coordinator.interrupted.remote(
            self._runner, session, [ray.put(sampled)]
        )

    def _transcripts(self) -> dict[int, Transcript]:
        """By key; whole where an episode is still replayed, or waits for that."""
        replays = [
            member.replay
            for _, members in self._under_way.values()
            for member in members
            if member.replay is not None
        ]
        whole = {replay.key: replay.whole() for replay in replays}
        return {**self._player.transcripts, **whole}

    def _forget(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._player.forget(_keys(self._kept.pop(number, [])))
            if number in self._playing:  # given up elsewhere: it only takes up places
                self._playing[number].cancel()

    # --- Groups -------------------------------------------------------------------

    def _play(self, number: int, group: Coroutine[Any, Any, None]) -> None:
        task = self._playing[number] = asyncio.create_task(group)
        task.add_done_callback(partial(self._group_ended, number))

    def _group_ended(self, number: int, task: asyncio.Task) -> None:
        if self._playing.get(number) is task:
            del self._playing[number]
        if not task.cancelled() and task.exception() is not None:
            # Not the environment's fault: the engine has died, or this code is wrong.
            self._on_failure(_first_leaf(task.exception()))

    async def _run_group(self, ticket: Ticket, records: Sequence[Any]) -> None:
        """Plays the episodes of one task; the group is delivered whole, or not.

        Args:
            ticket: The task.
            records: Of each member, see `under_way`.
        """
        if ticket.task >= len(self._tasks):
            # Of a checkpoint, under way when the suite had more tasks.
            self._report.num_places += ticket.num_episodes
            self._report.given_up.append(GivenUpGroup(ticket.number, RESTORED))
            self._news.set()
            return
        task = self._tasks[ticket.task]
        members = [
            Progress(replay=Replay(record) if record else None) for record in records
        ]
        self._under_way[ticket.number] = task, members
        played: list[asyncio.Task] = []
        try:
            async with asyncio.TaskGroup() as group:
                for member, progress in enumerate(members):
                    seed = self._episode_seed(ticket.number, member)
                    played.append(
                        group.create_task(self._run_member(task, progress, seed))
                    )
        except* EpisodeError as errors:
            reason = _first_leaf(errors).reason
            # With it the tokens since the last report are dropped.
            self._report.progress[ticket.number] = _num_tokens(members)
            self._report.given_up.append(GivenUpGroup(ticket.number, reason))
        else:
            self._kept[ticket.number] = members
            self._deliver(ticket, [member.result() for member in played])
        finally:
            if ticket.number not in self._kept:
                # Members that had ended are of no use alone.
                self._player.forget(_keys(members))
            self._note_lost_tries(ticket.number)
            del self._under_way[ticket.number]
            self._news.set()

    def _episode_seed(self, group: int, member: int) -> int | None:
        if self._seed is None:
            return None
        return random.Random(f"{self._seed}/{group}/{member}").getrandbits(31)

    async def _run_member(
        self, task: TaskRef, progress: Progress, seed: int | None
    ) -> tuple[SingleAgentEpisode, EpisodeOutcome]:
        try:
            return await self._player.play(task, progress=progress, seed=seed)
        finally:
            self._report.num_places += 1
            self._news.set()

    def _deliver(
        self, ticket: Ticket, played: list[tuple[SingleAgentEpisode, EpisodeOutcome]]
    ) -> None:
        episodes, outcomes = map(list, zip(*played, strict=True))
        for episode in episodes:
            episode.custom_data[columns.GROUP_ID] = ticket.number
        self._finished[ticket.number] = episodes
        self._report.finished.append(FinishedGroup(ticket, outcomes))

    # --- Reports ------------------------------------------------------------------

    async def _send_reports(self) -> None:
        """Returns when the session is over."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUIET_REPORT_SECONDS):
                    await self._news.wait()
            self._news.clear()
            pause = await self._coordinator.report.remote(self._take_report())
            if pause is None:
                return
            await asyncio.sleep(pause)

    def _take_report(self) -> Report:
        now = time.monotonic()
        others = "; ".join(self._player.waiting_for())
        for number, (task, members) in self._under_way.items():
            self._note_lost_tries(number)
            self._report.progress[number] = _num_tokens(members)
            slowest = min(members, key=lambda progress: progress.since)
            self._report.doing[number] = (
                f"task {task.id}, waiting {now - slowest.since:.0f} s for "
                f"{slowest.doing}" + (f" ({others})" if others else "")
            )
        self._report.seconds_waited = self._player.seconds_waited()
        report = self._report
        self._report = Report(
            self._runner,
            report.session,
            report.num_places,
            engine_version=report.engine_version,
        )
        return report

    def _note_lost_tries(self, number: int) -> None:
        for progress in self._under_way[number][1]:
            for num_tokens, reason in progress.lost_tries:
                self._report.lost_tries.append(LostTry(number, num_tokens, reason))
            progress.lost_tries.clear()


def _record_of(member: Progress) -> Any:
    # The transcript of a replay is shorter than what it repeats.
    if member.replay is not None:
        return member.replay.record
    return member.transcript and record_of(member.transcript)


def _num_tokens(members: Sequence[Progress]) -> int:
    return sum(member.num_tokens for member in members)


def _keys(members: Sequence[Progress]) -> list[int]:
    return [m.transcript.key for m in members if m.transcript is not None]


def _first_leaf(error: BaseException | None) -> Any:
    """The first error of a group of errors."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
