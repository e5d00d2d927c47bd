"""The actor between learners, engines and the driver: one place for every decision.

Learners put weights into shared memory and say where; env runners wait for orders and
report what has become of them. So weights go from learner to engine, never through the
driver or this actor, a runner that (re)starts finds its place by itself, and an update
never queues behind a runner's `sample()`.

What is decided here is decided by plain objects: `Dispatcher` (who may start, what an
update is made of), `WeightBoard`, `Ledger`, `Interruption`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from rllib_llm_async.coordination import coordinator_state
from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.interruption import Interruption
from rllib_llm_async.coordination.ledger import EpisodeFate, Ledger
from rllib_llm_async.coordination.messages import (
    FinishedGroup,
    NextBatch,
    Orders,
    PublishedWeights,
    Report,
    UpdateEnded,
)
from rllib_llm_async.coordination.restored_groups import RestoredGroups
from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.coordination.token_age import TokenAge
from rllib_llm_async.coordination.weight_board import WeightBoard

if TYPE_CHECKING:
    from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
    from rllib_llm_async.old_logprobs.old_logit_actor import OldLogitPool

#: Waiting calls return after this long, so that a caller notices its own shutdown.
POLL_SECONDS = 5.0
#: How often what has grown too old is looked for.
SWEEP_SECONDS = 1.0
#: Least time between two reports of a runner, for one runner and for a thousand.
REPORT_SECONDS, REPORT_SECONDS_OF_1000 = 0.1, 1.0
#: Reports that come within so long share one look at who may start, and looks are so
#: far apart; likewise.
LOOK_SECONDS, LOOK_SECONDS_OF_1000 = 0.005, 0.4
#: New objects between two collections; Python's 700 are 90 groups.
GC_THRESHOLD = 20_000


@dataclass
class Mailbox:
    """What a runner has not heard yet."""

    handle: Any
    tickets: list[Ticket] = field(default_factory=list)
    doing: dict[int, str] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    #: When its call returns without news; a timer for each would cost more than they.
    deadline: float = math.inf


class Coordinator:
    """Async actor; every method runs on its one event loop, so no lock is needed.

    Args:
        dispatcher: Decides.
        max_staleness: Bound on the age of a token at its update, in versions.
        drop_uniform_groups: Whether groups that have nothing to teach are left out.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        max_staleness: int,
        drop_uniform_groups: bool = False,
    ) -> None:
        # What is imported stays, and groups live for long: collections find nothing.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        self._dispatcher = dispatcher
        self._weights = WeightBoard(max_staleness)
        self._ledger = Ledger()
        self._domains: list[str] = []
        self._age = TokenAge()
        self._drop_uniform_groups = drop_uniform_groups
        self._old_logit_pool: OldLogitPool | None = None
        self._interruption: Interruption | None = None
        self._mailboxes: dict[int, Mailbox] = {}
        self._ready: dict[int, FinishedGroup] = {}
        self._in_training: list[FinishedGroup] = []
        self._restored: RestoredGroups = RestoredGroups()
        self._outcomes: list[EpisodeOutcome] = []
        self._dropped: Counter[str] = Counter()
        self._batch_news = asyncio.Event()
        self._failure: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.Task | None = None

    # --- Called by env runners ----------------------------------------------------

    async def register(
        self, handle: Any, runner: int, domains: list[str], capacity: int
    ) -> int:
        """Begins a runner's session; what it had under way before is lost.

        Args:
            handle: The actor, see `LLMEnvRunner.hand_out`.
            runner: Its number.
            domains: Of each task of its suite, for training.
            capacity: Episodes that it plays at once.

        Returns:
            The number of its session, the runner's time with this coordinator.
        """
        await self.lose_runner(runner)
        self._domains = domains
        number = self._dispatcher.register(runner, len(domains), capacity, self._now())
        self._mailboxes[runner] = Mailbox(handle)
        self._sweeper = self._sweeper or asyncio.create_task(self._sweep())
        return number

    async def orders(
        self, runner: int, session: int, serial: int, interrupted: int
    ) -> Orders:
        """Waits until there is something to do for a runner, for `POLL_SECONDS`.

        Args:
            runner: Who asks.
            session: See `register`.
            serial: Of the newest weights that it has heard of.
            interrupted: Newest version whose interruption it has answered.
        """
        mailbox = self._mailboxes.get(runner)
        deadline = self._now() + POLL_SECONDS
        if mailbox is not None:
            mailbox.deadline = deadline
        while True:
            known = self._dispatcher.session(runner, session, self._now())
            if known is None or mailbox is None:
                return Orders(retired=True)
            weights = self._weights.newer_than(serial)
            stop = self._interruption_of(runner, interrupted)
            if (
                weights
                or stop is not None
                or mailbox.tickets
                or (self._now() >= deadline)
            ):
                tickets, mailbox.tickets = mailbox.tickets, []
                settled, known.settled = known.settled, []
                records = self._restored.take_records(tickets)
                return Orders(weights, stop, tickets, records, settled)
            mailbox.news.clear()
            await mailbox.news.wait()

    async def report(self, report: Report) -> float | None:
        """Takes what has happened at a runner.

        Returns:
            Seconds until it shall report again, which many runners do less often; None
            if its session is over.
        """
        now = self._now()
        if self._dispatcher.session(report.runner, report.session, now) is None:
            return None
        self._mailboxes[report.runner].doing = report.doing
        self._dispatcher.has_waited(report.runner, report.seconds_waited)
        self._ledger.progress(report.progress)
        for lost in report.lost_tries:
            self._ledger.lose_tokens(lost.number, lost.num_tokens, lost.reason)
        for given_up in report.given_up:
            self._dispatcher.drop(given_up.number, given_up.reason)
        self._dispatcher.has_places(
            report.runner, report.num_places, report.engine_version
        )
        self._allot_within(self._look_seconds())
        if report.finished:
            await self._fetch(report)
        return self._for_all_runners(REPORT_SECONDS, REPORT_SECONDS_OF_1000)

    async def interrupted(
        self, runner: int, session: int, sampled: list[ray.ObjectRef]
    ) -> None:
        """A runner has stopped and hands out what it sampled."""
        known = self._dispatcher.session(runner, session, self._now())
        if known is not None and self._interruption is not None:
            await self._interruption.answer(runner, sampled)

    # --- Called by learners -------------------------------------------------------

    async def announce(self, version: int) -> int:
        """The learner holds this version from now on, and is about to publish it.

        Returns:
            `PublishedWeights.serial`. A version that comes soon after may be the only
            one of the two that is published.
        """
        serial = self._weights.announce()
        self._dispatcher.publish(version, self._now())
        self._allot()
        return serial

    async def publish(self, published: list[PublishedWeights]) -> None:
        """Lets engines have a version (in a list, lest Ray resolves the reference)."""
        (newest,) = published
        self._weights.publish(newest)
        self._wake_runners()
        self._allot()

    async def fail(self, reason: str) -> None:
        """A learner cannot go on; the driver hears of it with its next question."""
        self._failure = reason
        self._batch_news.set()

    async def interrupt(self, version: int) -> list[ray.ObjectRef]:
        """Stops all engines; returns what they sampled under the outgoing version.

        Called by every learner of a run; generation goes on with the next version.

        Returns:
            References to lists of token columns, one per runner.
        """
        if self._interruption is None or self._interruption.version != version:
            self._interruption = Interruption(
                version, set(self._mailboxes), self._restored.sampled_under(version)
            )
            self._wake_runners()
        return await self._interruption.all_sampled()

    async def share_scores(
        self, version: int, scores: list[ray.ObjectRef], num_learners: int
    ) -> list[ray.ObjectRef]:
        """Takes one learner's scores; returns those of all once all are there."""
        if self._interruption is None or self._interruption.version != version:
            raise RuntimeError(f"version {version} has not been interrupted")
        return await self._interruption.all_scores(scores, num_learners)

    async def settle(self, fates: list[EpisodeFate]) -> None:
        """Records what became of one learner's share of an update."""
        self._ledger.settle(fates)

    async def trainer_weights(
        self, after_serial: int
    ) -> list[tuple[int, int, ray.ObjectRef]]:
        """See `WeightBoard.trainer_weights`; called by old-logit actors."""
        return self._weights.trainer_weights(after_serial)

    # --- Called by the driver -----------------------------------------------------

    async def score_with(self, pool: OldLogitPool) -> None:
        """Sends every finished group past an old-logit actor from now on."""
        self._old_logit_pool = pool

    async def lose_runner(self, runner: int) -> None:
        """Forgets what a dead runner had under way, and that others wait for it."""
        mailbox = self._mailboxes.pop(runner, None)
        if mailbox is not None:
            mailbox.news.set()
        if self._interruption is not None:
            await self._interruption.answer(runner, [])
        self._dispatcher.lose(runner)
        self._allot()

    async def next_batch(self, wait_seconds: float) -> NextBatch:
        """The groups of the next update, waiting for them for so long.

        Raises:
            RuntimeError: What a learner says, see `fail`.
        """
        deadline = self._now() + wait_seconds
        while not (batch := self._dispatcher.next_batch(self._now())):
            if self._failure is not None:
                raise RuntimeError(self._failure)
            if self._now() >= deadline:
                break
            self._batch_news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline - self._now()):
                    await self._batch_news.wait()
        groups = [self._ready.pop(ticket.number) for ticket in batch]
        for group in groups:
            number = group.ticket.number
            self._age.trained(number, self._dispatcher.versions_in_queue(number))
        self._in_training += groups
        self._allot()
        outcomes, self._outcomes = self._outcomes, []
        dropped, self._dropped = dict(self._dropped), Counter()
        return NextBatch(
            groups or None,
            outcomes,
            dropped,
            self._dispatcher.num_ready,
            "" if groups else self._waits_for(),
        )

    async def consumed(self) -> UpdateEnded:
        """The update of the last batch has ended."""
        for group in self._in_training:
            self._ledger.close(group.ticket.number)
        now = self._now()
        self._dispatcher.consume(group.ticket for group in self._in_training)
        self._in_training = []
        self._allot()
        return UpdateEnded(
            self._ledger.metrics() | self._age.metrics(self._dispatcher.held, now),
            coordinator_state.will(self),
        )

    async def newest_serial(self) -> int:
        """`PublishedWeights.serial` of what was announced last."""
        return self._weights.newest_serial

    async def pause_training_episodes(self, paused: bool) -> None:
        """Stops (or resumes) starting training groups, for an evaluation."""
        self._dispatcher.pause(paused, self._now())
        self._allot()

    async def forget_episodes(self) -> None:
        """Ends all sessions and drops all groups, before a checkpoint is restored."""
        self._dispatcher.forget()
        self._note_dropped()
        self._weights.forget()
        self._interruption = None
        self._failure = None  # of what is not trained on any more
        self._ready.clear()
        self._restored = RestoredGroups()
        self._in_training = []
        mailboxes, self._mailboxes = self._mailboxes, {}
        for mailbox in mailboxes.values():
            mailbox.news.set()

    async def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps, see `coordinator_state.get_state`."""
        return await coordinator_state.get_state(self)

    async def set_state(
        self, state: dict[str, Any], sampled: list[ray.ObjectRef] | None = None
    ) -> None:
        """Goes on from a checkpoint, see `coordinator_state.set_state`."""
        await coordinator_state.set_state(self, state, sampled or [])

    async def will(self) -> dict[str, Any]:
        """What a successor goes on from, should this one die, see `UpdateEnded`."""
        return coordinator_state.will(self)

    # --- On the loop --------------------------------------------------------------

    def _for_all_runners(self, least: float, of_1000: float) -> float:
        """Seconds between what every runner causes, so that many cost no more."""
        return max(least, len(self._mailboxes) / 1000 * of_1000)

    def _look_seconds(self) -> float:
        return self._for_all_runners(LOOK_SECONDS, LOOK_SECONDS_OF_1000)

    @staticmethod
    def _now() -> float:
        return time.monotonic()

    async def _fetch(self, report: Report) -> None:
        """Has a runner hand out what it has finished, so that it belongs here.

        Raises what the runner raises: it has died, and is given up as such.
        """
        handle = self._mailboxes[report.runner].handle
        numbers = [group.ticket.number for group in report.finished]
        has_come, *episodes = handle.hand_out.options(
            num_returns=1 + len(numbers)
        ).remote(numbers)
        await has_come
        # A restored coordinator numbers groups like the one before.
        now = self._now()
        if self._dispatcher.session(report.runner, report.session, now) is None:
            return
        for group, reference in zip(report.finished, episodes, strict=True):
            self._take(FinishedGroup(group.ticket, group.outcomes, reference), now)
        if self._dispatcher.num_ready >= self._dispatcher.episodes_per_update:
            self._batch_news.set()
        if self._drop_uniform_groups:
            self._allot()

    def _take(self, group: FinishedGroup, now: float) -> None:
        """A finished group, unless nobody waits for it any more."""
        number = group.ticket.number
        if not self._dispatcher.finish(number, now):
            return
        self._outcomes += group.outcomes
        self._ledger.finish(number, group.outcomes)
        self._age.finished(group, self._dispatcher.learner_version)
        if self._drop_uniform_groups and group.is_uniform:
            self._dispatcher.drop(number, "uniform")
            return
        if self._old_logit_pool is not None:
            group = self._old_logit_pool.scored(group)
        self._ready[number] = group

    def _note_dropped(self) -> None:
        for ticket, reason in self._dispatcher.take_dropped():
            self._ledger.drop(ticket.number, reason)
            self._age.gone(ticket.number)
            self._ready.pop(ticket.number, None)
            self._dropped[reason] += ticket.num_episodes
            self._batch_news.set()  # nobody waits for it any more

    def _interruption_of(self, runner: int, answered: int) -> int | None:
        current = self._interruption
        if current is None or current.version <= answered:
            return None
        return current.version if runner in current.waiting_for else None

    def _allot(self) -> None:
        """Hands out tickets, and sets the clock for those that have to wait."""
        self._note_dropped()
        now = self._now()
        for ticket in self._dispatcher.allot(now):
            if ticket.number not in self._restored.numbers:
                self._ledger.start(
                    ticket.number, ticket.num_episodes, self._domains[ticket.task]
                )
            mailbox = self._mailboxes[ticket.runner]
            mailbox.tickets.append(ticket)
            mailbox.news.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self._dispatcher.look_again_at(now)
        if at is not None and at < now + SWEEP_SECONDS:
            self._allot_within(max(at - now, self._look_seconds()))

    def _allot_within(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._allot)

    def _wake_runners(self) -> None:
        for mailbox in self._mailboxes.values():
            mailbox.news.set()

    async def _sweep(self) -> None:
        """Gives up what is too old, ends calls, and looks whether more may start."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = self._now()
            for runner in self._dispatcher.give_up_late(now):
                await self.lose_runner(runner)
            for mailbox in self._mailboxes.values():
                if now >= mailbox.deadline:
                    mailbox.news.set()
            self._allot()

    def _waits_for(self) -> str:
        """The group without which no update may go ahead; empty: none in particular."""
        ticket = self._dispatcher.awaited()
        if ticket is None:
            return ""
        mailbox = self._mailboxes.get(ticket.runner)
        doing = mailbox.doing.get(ticket.number, "not begun") if mailbox else "gone"
        seconds = self._now() - self._dispatcher.started(ticket.number)
        return (
            f"group {ticket.number} of runner {ticket.runner}, begun {seconds:.0f} s "
            f"ago: {doing}"
        )
