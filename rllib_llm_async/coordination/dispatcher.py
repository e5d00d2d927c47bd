"""Every decision of the asynchronous loop, without a clock, a thread or Ray.

Runners register, are given tickets, and end their groups; learners ask for batches and
publish versions. `Coordinator` puts this behind an actor, the simulator drives it with
a clock of its own. Time comes in as ``now``, in seconds of any clock.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rllib_llm_async.coordination.pacing import SOON, LoopState, Pacing
from rllib_llm_async.coordination.staleness_gate import StalenessGate, Ticket
from rllib_llm_async.coordination.task_order import TaskOrder

#: A runner that says nothing for so long is taken for dead: stopped, cut off, or stuck
#: in an environment that blocks its loop. What it had under way starts elsewhere.
SILENCE_SECONDS = 60.0


@dataclass
class Runner:
    """What is known of a runner since it registered."""

    session: int
    num_tasks: int
    capacity: int
    heard_at: float
    num_places: int = 0
    num_given: int = 0
    engine_version: int | None = None
    seconds_waited: float = 0.0
    groups: set[int] = field(default_factory=set)
    #: Groups that have gone, for the runner to forget what it kept of them.
    settled: list[int] = field(default_factory=list)

    @property
    def num_free(self) -> int:
        """Places for further episodes."""
        return self.num_places - self.num_given


@dataclass
class UnderWay:
    """When a group started, and where the learner stood when it was finished."""

    started: float
    #: Time that does not count, since its environment waited for what is down.
    excused: float = 0.0
    finished_at_version: int | None = None


class Dispatcher:
    """Who may start which group, and what an update is made of.

    Args:
        episodes_per_update: Episodes that one learner update consumes.
        max_staleness: Bound on the age of a token at its update, in versions.
        group_size: Episodes of a group.
        seed: Of the order of tasks.
        ticket_timeout_s: After so long a group that is not finished is given up; None:
            never. A backstop: its runner has deadlines of its own.
    """

    def __init__(
        self,
        episodes_per_update: int,
        max_staleness: int,
        group_size: int,
        *,
        seed: int = 0,
        ticket_timeout_s: float | None = None,
    ) -> None:
        self._gate = StalenessGate(episodes_per_update, max_staleness)
        self.pacing = Pacing(episodes_per_update, max_staleness)
        self.tasks = TaskOrder(seed)
        self._group_size = group_size
        self._ticket_timeout_s = ticket_timeout_s
        self._runners: dict[int, Runner] = {}
        #: Episodes that all of them together play at once.
        self._num_places = 0
        #: Runners with room for a group, each once, who waits longest first.
        self._with_room: dict[int, None] = {}
        self._groups: dict[int, UnderWay] = {}
        #: Groups of a checkpoint that no runner has been given yet.
        self._adopted: dict[int, Ticket] = {}
        #: When the groups that are not finished started.
        self._running: dict[int, float] = {}
        self.next_number = self._next_session = 0
        self._paused = False
        self._published_at = 0.0
        #: Groups that will not be trained on, and why, since the last `take_dropped`.
        self._dropped: list[tuple[Ticket, str]] = []
        #: Seconds for which there was room, by what held it free: bound or pacing.
        self.held: dict[str, float] = defaultdict(float)
        self._held_by, self._held_since = "", 0.0

    # --- Runners ------------------------------------------------------------------

    def register(self, runner: int, num_tasks: int, capacity: int, now: float) -> int:
        """Begins a session; what the runner had under way before is lost.

        Args:
            runner: Its number.
            num_tasks: Of the suite, for training.
            capacity: Episodes that it plays at once.
            now: The time.
        """
        self.lose(runner)
        self._next_session += 1
        self._runners[runner] = Runner(self._next_session, num_tasks, capacity, now)
        self._num_places += capacity
        return self._next_session

    def lose(self, runner: int) -> None:
        """Gives up what a runner has under way; what it has finished stays."""
        known = self._runners.pop(runner, None)
        if known is None:
            return
        self._num_places -= known.capacity
        self._with_room.pop(runner, None)
        for number in known.groups:
            if not self._gate.is_delivered(number):
                self.drop(number, "lost")

    def session(self, runner: int, session: int, now: float) -> Runner | None:
        """The runner, if that is still its session; it has been heard of."""
        known = self._runners.get(runner)
        if known is None or known.session != session:
            return None
        known.heard_at = now
        return known

    def has_places(self, runner: int, num_places: int, version: int | None) -> None:
        """A runner's places so far (freed ones included), and its engine's version."""
        known = self._runners[runner]
        known.num_places = num_places
        known.engine_version = version
        self._note_room(runner)

    def has_waited(self, runner: int, seconds: float) -> None:
        """For how long a runner's environments have waited for what is down, in all."""
        known = self._runners[runner]
        more, known.seconds_waited = seconds - known.seconds_waited, seconds
        if more > 0:
            for number in known.groups:
                self._groups[number].excused += more

    # --- Admission ----------------------------------------------------------------

    def allot(self, now: float) -> list[Ticket]:
        """Tickets for the groups that should start now."""
        tickets: list[Ticket] = []
        held_by = ""
        while self._with_room and not self._paused and not held_by:
            if self._adopted:
                tickets.append(self._give_adopted(now))
            elif self._start_at(now) > now:
                held_by = "pacing"
            elif (ticket := self._admit_next(now)) is None:
                held_by = "bound"
            else:
                tickets.append(ticket)
        self.held[self._held_by] += now - self._held_since
        self._held_by, self._held_since = held_by, now
        return tickets

    def look_again_at(self, now: float) -> float | None:
        """When `allot` may give more although nothing has happened; None: never."""
        if self._paused:
            return None
        if self._held_by == "pacing":
            return max(self._start_at(now), now)
        admitted = [
            version
            for version in {self._runners[r].engine_version for r in self._with_room}
            if version is not None and self._gate.admits(version, self._group_size)
        ]
        if not admitted:
            return None
        earliest = min(self._usable_from(version) for version in admitted)
        return max(self._start_at(now), earliest, now)

    def _start_at(self, now: float) -> float:
        return self.pacing.start_at(now, self._look)

    def _look(self) -> LoopState:
        gate = self._gate
        return LoopState(
            gate.num_delivered_episodes,
            [*self._running.values()],
            self._group_size,
            self._num_places,
        )

    def _admit_next(self, now: float) -> Ticket | None:
        for runner in self._with_room:
            known = self._runners[runner]
            version = known.engine_version
            assert version is not None
            if now < self._usable_from(version) or not self._gate.admits(
                version, self._group_size
            ):
                continue
            ticket = Ticket(
                self.next_number,
                runner,
                version,
                self._group_size,
                self.tasks.next(known.num_tasks),
            )
            self.next_number += 1
            self._gate.admit(ticket)
            self._groups[ticket.number] = UnderWay(now)
            self._running[ticket.number] = now
            self.pacing.started(ticket.num_episodes)
            self._give(ticket)
            return ticket
        return None

    def _give_adopted(self, now: float) -> Ticket:
        """The next group of a checkpoint, for who waits longest; it starts only now."""
        number = next(iter(self._adopted))
        ticket = replace(self._adopted.pop(number), runner=next(iter(self._with_room)))
        self._gate.hand_over(ticket)
        self._groups[number].started = self._running[number] = now
        self._give(ticket)
        return ticket

    def _give(self, ticket: Ticket) -> None:
        """To its runner, which waits longest of those that may have it."""
        known = self._runners[ticket.runner]
        del self._with_room[ticket.runner]
        known.groups.add(ticket.number)
        known.num_given += ticket.num_episodes
        self._note_room(ticket.runner)

    def _usable_from(self, engine_version: int) -> float:
        """From when a group may start at an engine of that version.

        One that is about to get newer weights is worth waiting for: the group would be
        a version older from its first token on.
        """
        update = self.pacing.update_seconds
        if update is None or engine_version == self.learner_version:
            return -math.inf
        return self._published_at + SOON * update

    def _note_room(self, runner: int) -> None:
        known = self._runners[runner]
        if known.engine_version is not None and known.num_free >= self._group_size:
            self._with_room.setdefault(runner)

    def pause(self, paused: bool, now: float) -> None:
        """Stops (or resumes) starting groups, for an evaluation between updates."""
        self._paused = paused
        self.pacing.update_ended(now)
        self.pacing.learner_pauses()

    # --- Checkpoints --------------------------------------------------------------

    def under_way(self) -> list[Ticket]:
        """Groups that are not finished."""
        return self._gate.under_way()

    def finished_at_version(self, number: int) -> int | None:
        """Where the learner stood when a group was finished."""
        return self._groups[number].finished_at_version

    def adopt(
        self, ticket: Ticket, now: float, finished_at_version: int | None = None
    ) -> bool:
        """Takes over a group of a checkpoint.

        Args:
            ticket: The group's.
            now: The time.
            finished_at_version: None for one that is not finished: it starts, before
                any other, as soon as a runner has room.

        Returns:
            False if it is too old for the bound that holds now.
        """
        if not self._gate.admits(ticket.born, ticket.num_episodes):
            return False
        self._gate.admit(ticket)
        self._groups[ticket.number] = UnderWay(
            now, finished_at_version=finished_at_version
        )
        if finished_at_version is None:
            self._adopted[ticket.number] = ticket
            self._running[ticket.number] = now
        else:
            self._gate.deliver(ticket.number)
        return True

    # --- Groups end ---------------------------------------------------------------

    def finish(self, number: int, now: float) -> bool:
        """A group is finished; False if nobody waits for it any more."""
        if self._running.pop(number, None) is None:
            return False
        group = self._groups[number]
        group.finished_at_version = self._gate.learner_version
        self.pacing.group_ended(now - group.started, kept=True)
        self._gate.deliver(number)
        return True

    def drop(self, number: int, reason: str) -> bool:
        """A group will not be trained on; False if it had gone before."""
        ticket = self._gate.outstanding.get(number)
        if ticket is None:
            return False
        self._dropped.append((ticket, reason))
        if not self._gate.is_delivered(number):
            self.pacing.group_ended(0.0, kept=False)
        self.pacing.group_dropped()
        self._gate.consume([number])
        self._forget(ticket)
        return True

    def give_up_late(self, now: float) -> list[int]:
        """Gives up what is older than it may get, and runners that are silent.

        Returns:
            These runners.
        """
        silent = [
            runner
            for runner, known in self._runners.items()
            if now - known.heard_at > SILENCE_SECONDS
        ]
        for runner in silent:
            self.lose(runner)
        if self._ticket_timeout_s is None:
            return silent
        for number, group in list(self._groups.items()):
            if (
                now - group.started - group.excused > self._ticket_timeout_s
                and group.finished_at_version is None
                and number not in self._adopted
            ):
                self.drop(number, "ticket_timeout")
        return silent

    def take_dropped(self) -> list[tuple[Ticket, str]]:
        """Groups that will not be trained on, and why, since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _forget(self, ticket: Ticket) -> None:
        self._groups.pop(ticket.number, None)
        self._running.pop(ticket.number, None)
        self._adopted.pop(ticket.number, None)
        known = self._runners.get(ticket.runner)
        if known is not None and ticket.number in known.groups:
            known.groups.discard(ticket.number)
            known.settled.append(ticket.number)

    # --- Learners -----------------------------------------------------------------

    def next_batch(self, now: float) -> list[Ticket]:
        """The groups of the next update; empty: wait for more."""
        enough = self.num_ready >= self.episodes_per_update
        self.pacing.learner_wants(now, enough=enough)
        batch = self._gate.next_batch()
        if batch:
            self.pacing.learner_got(now)
        return batch

    def consume(self, tickets: Iterable[Ticket]) -> None:
        """An update has used these groups."""
        for ticket in tickets:
            self._gate.consume([ticket.number])
            self._forget(ticket)

    def publish(self, version: int, now: float) -> None:
        """The learner holds this version from now on."""
        self._gate.learner_version = version
        self._published_at = now

    @property
    def episodes_per_update(self) -> int:
        """Episodes that one learner update consumes."""
        return self._gate.episodes_per_update

    @property
    def learner_version(self) -> int:
        """The newest one published."""
        return self._gate.learner_version

    @property
    def num_ready(self) -> int:
        """Episodes that wait for their update."""
        return self._gate.num_delivered_episodes

    def awaited(self) -> Ticket | None:
        """The group under way that the next update waits for."""
        return self._gate.awaited()

    def started(self, number: int) -> float:
        """When a group started."""
        return self._groups[number].started

    def versions_in_queue(self, number: int) -> int:
        """Versions that were published while a finished group waited."""
        finished = self._groups[number].finished_at_version
        return self._gate.learner_version - (
            self._gate.learner_version if finished is None else finished
        )

    def forget(self) -> None:
        """Ends all sessions and drops all groups, before a checkpoint is restored."""
        for number in list(self._groups):
            self.drop(number, "restored")
        self._gate.forget()
        self._groups.clear()
        self._adopted.clear()
        self._running.clear()
        self._runners.clear()
        self._num_places = 0
        self._with_room.clear()
        self.pacing.learner_pauses()
