"""The staleness bound at its source: who may start, and what is trained on next.

Pure bookkeeping without clock, threads or Ray, so that orderings can be tested one by
one. A group whose oldest token can be of version b must be consumed while the learner
is at b + S or before (S the bound): that is its deadline. One update consumes B
episodes and advances the learner by one version. A set of groups can all meet their
deadlines if and only if, for every deadline d, those due by d fit into the updates that
are left, (d - v + 1) * B episodes with the learner at v; taking the earliest deadline
first then does it. A group is admitted only if that stays true, and an update goes
ahead only if it stays true for what is still under way. So nothing that was admitted
ever has to be dropped for its age; S = 0 gives the synchronous algorithm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby


@dataclass(frozen=True)
class Ticket:
    """Permission to start one group.

    ``born`` is the engine version at admission, the oldest that its tokens can have.
    """

    number: int
    runner: int
    born: int
    num_episodes: int


@dataclass
class StalenessGate:
    """Keeps account of groups from admission to consumption.

    Args:
        episodes_per_update: B above.
        max_staleness: S above, in policy versions.
    """

    episodes_per_update: int
    max_staleness: int
    learner_version: int = 0
    _outstanding: dict[int, Ticket] = field(default_factory=dict)
    _delivered: set[int] = field(default_factory=set)
    _in_training: set[int] = field(default_factory=set)
    _next_number: int = 0

    def admit(
        self, runner: int, engine_version: int, num_episodes: int
    ) -> Ticket | None:
        """Returns a ticket for a group, or None if it could break the bound."""
        ticket = Ticket(self._next_number, runner, engine_version, num_episodes)
        if not self._feasible([*self._outstanding.values(), ticket], 0):
            return None
        self._next_number += 1
        self._outstanding[ticket.number] = ticket
        return ticket

    def deliver(self, number: int) -> None:
        """Records that a group is finished and waits for its update."""
        if number in self._outstanding:
            self._delivered.add(number)

    def next_batch(self) -> list[int]:
        """Numbers of the finished groups to train on now; empty: wait for more."""
        batch, num_episodes = [], 0
        for ticket in sorted(
            (self._outstanding[number] for number in self._delivered),
            key=lambda ticket: (ticket.born, ticket.number),
        ):
            if num_episodes < self.episodes_per_update:
                batch.append(ticket.number)
                num_episodes += ticket.num_episodes
        if num_episodes < self.episodes_per_update:
            return []
        rest = [t for t in self._outstanding.values() if t.number not in batch]
        if not self._feasible(rest, 1):
            return []
        self._in_training = set(batch)
        return batch

    def consume(self, numbers: Iterable[int]) -> None:
        """Records that groups were trained on or dropped."""
        for number in numbers:
            self._outstanding.pop(number, None)
            self._delivered.discard(number)

    def outstanding(self, runner: int) -> set[int]:
        """Numbers of a runner's groups that are still to be handed out for training."""
        return {
            ticket.number
            for ticket in self._outstanding.values()
            if ticket.runner == runner and ticket.number not in self._in_training
        }

    def lose_runner(self, runner: int) -> int:
        """Forgets what a dead runner had under way; returns how many episodes."""
        lost = [
            ticket
            for ticket in self._outstanding.values()
            if ticket.runner == runner and ticket.number not in self._delivered
        ]
        self.consume([ticket.number for ticket in lost])
        return sum(ticket.num_episodes for ticket in lost)

    def forget(self) -> None:
        """Forgets every group; numbers go on, so that late news of one is harmless."""
        self._outstanding.clear()
        self._delivered.clear()

    def _feasible(self, tickets: Iterable[Ticket], versions_ahead: int) -> bool:
        """Whether all meet their deadlines from ``versions_ahead`` updates on."""
        version = self.learner_version + versions_ahead
        due = 0
        by_age = sorted(tickets, key=lambda ticket: ticket.born)
        for born, same_age in groupby(by_age, key=lambda ticket: ticket.born):
            due += sum(ticket.num_episodes for ticket in same_age)
            updates_left = born + self.max_staleness - version + 1
            if due > updates_left * self.episodes_per_update:
                return False
        return True
