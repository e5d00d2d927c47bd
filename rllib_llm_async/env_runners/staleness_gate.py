"""Decides when a runner may start another group: the staleness bound at its source.

Pure bookkeeping without clock, threads or Ray, so that orderings can be tested one by
one. Let B be the episodes that one update consumes, S the bound. Of ``outstanding``
episodes (admitted, neither trained on nor dropped) the next one to start is consumed
``outstanding // B`` updates from now at the earliest pacing allows. Sampled under
engine version e while the learner is at v, it will then be
``outstanding // B + (v - e)`` versions old, which must not exceed S. Together with
earliest-deadline-first consumption (see `must_wait_for`) nothing that was admitted
ever has to be dropped for its age; 0 gives the synchronous algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """Counts admitted and consumed episodes.

    Args:
        episodes_per_update: B above.
        max_staleness: S above, in policy versions.
    """

    episodes_per_update: int
    max_staleness: int
    learner_version: int = 0
    _outstanding: dict[int, Ticket] = field(default_factory=dict)
    _delivered: set[int] = field(default_factory=set)
    _next_number: int = 0

    def admit(
        self, runner: int, engine_version: int, num_episodes: int
    ) -> Ticket | None:
        """Returns a ticket for a group, or None if it could break the bound."""
        updates_ahead = self.num_outstanding_episodes // self.episodes_per_update
        lag = self.learner_version - engine_version
        if updates_ahead + lag > self.max_staleness:
            return None
        ticket = Ticket(self._next_number, runner, engine_version, num_episodes)
        self._next_number += 1
        self._outstanding[ticket.number] = ticket
        return ticket

    def deliver(self, number: int) -> None:
        """Records that a group is finished and waits for its update."""
        if number in self._outstanding:
            self._delivered.add(number)

    def consume(self, numbers: list[int]) -> None:
        """Records that groups were trained on or dropped."""
        for number in numbers:
            self._outstanding.pop(number, None)
            self._delivered.discard(number)

    def lose_runner(self, runner: int) -> int:
        """Forgets what a dead runner had under way; returns how many episodes."""
        lost = [
            ticket
            for ticket in self._outstanding.values()
            if ticket.runner == runner and ticket.number not in self._delivered
        ]
        self.consume([ticket.number for ticket in lost])
        return sum(ticket.num_episodes for ticket in lost)

    def must_wait_for(self) -> set[int]:
        """Groups under way that the very next update must include to keep the bound."""
        deadline = self.learner_version - self.max_staleness
        return {
            ticket.number
            for ticket in self._outstanding.values()
            if ticket.born <= deadline and ticket.number not in self._delivered
        }

    @property
    def num_outstanding_episodes(self) -> int:
        """Episodes admitted and neither trained on nor dropped."""
        return sum(ticket.num_episodes for ticket in self._outstanding.values())
