"""The staleness bound at its source: who may start, and what is trained on next.

Pure bookkeeping without clock, threads or Ray, so that orderings can be tested one by
one. A group whose oldest token can be of version b must be consumed while the learner
is at b + S or before (S the bound): that is its deadline. One update consumes B
episodes and advances the learner by one version. A set of groups can all meet their
deadlines if and only if, for every deadline d, those due by d fit into the updates that
are left, (d - v + 1) * B episodes with the next update at version v; taking the
earliest deadline first then does it. A group is admitted only if that stays true, and
an update goes ahead only if it stays true for what is still under way. So nothing that
was admitted ever has to be dropped for its age; S = 0 gives the synchronous algorithm.

At most S + 2 versions are ever outstanding, which is what every decision costs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ticket:
    """Permission to start one group.

    ``born`` is the engine version at admission, the oldest that its tokens can have.
    ``task`` is a position in the suite's training tasks.
    """

    number: int
    runner: int
    born: int
    num_episodes: int
    task: int = 0


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
    #: Episodes by the version that they were born with; without those in training.
    _due: Counter[int] = field(default_factory=Counter)
    _delivered: dict[int, Ticket] = field(default_factory=dict)
    #: The same as (born, number), and perhaps some that have gone since.
    _by_age: list[tuple[int, int]] = field(default_factory=list)
    _num_delivered_episodes: int = 0
    _in_training: dict[int, Ticket] = field(default_factory=dict)
    _training_version: int = 0

    def admits(self, engine_version: int, num_episodes: int) -> bool:
        """Whether a group may start at an engine of that version."""
        return self._feasible(
            {**self._due, engine_version: self._due[engine_version] + num_episodes},
            self._next_update_version,
        )

    def admit(self, ticket: Ticket) -> None:
        """Takes account of a group that `admits` has let in."""
        self._outstanding[ticket.number] = ticket
        self._due[ticket.born] += ticket.num_episodes

    def hand_over(self, ticket: Ticket) -> None:
        """Another runner has an admitted group from now on."""
        self._outstanding[ticket.number] = ticket

    def deliver(self, number: int) -> None:
        """Records that a group is finished and waits for its update."""
        ticket = self._outstanding.get(number)
        if ticket is not None and number not in self._delivered:
            self._delivered[number] = ticket
            self._num_delivered_episodes += ticket.num_episodes
            heapq.heappush(self._by_age, (ticket.born, number))

    def next_batch(self) -> list[Ticket]:
        """The finished groups to train on now; empty: wait for more."""
        if self._num_delivered_episodes < self.episodes_per_update:
            return []
        batch: list[Ticket] = []
        num_episodes = 0
        while num_episodes < self.episodes_per_update:
            _, number = heapq.heappop(self._by_age)
            if number in self._delivered:
                batch.append(self._delivered[number])
                num_episodes += batch[-1].num_episodes
        rest = self._due.copy()
        for ticket in batch:
            rest[ticket.born] -= ticket.num_episodes
        if not self._feasible(rest, self.learner_version + 1):
            for ticket in batch:
                heapq.heappush(self._by_age, (ticket.born, ticket.number))
            return []
        for ticket in batch:
            self._take(ticket.number)
        self._in_training = {ticket.number: ticket for ticket in batch}
        self._training_version = self.learner_version
        return batch

    def consume(self, numbers: Iterable[int]) -> None:
        """Records that groups were trained on, or will never be."""
        for number in numbers:
            if self._in_training.pop(number, None) is None:
                self._take(number)

    def awaited(self) -> Ticket | None:
        """The group under way that an update waits for; of several the first.

        With enough episodes for an update it is one that is due.
        """
        if self._num_delivered_episodes < self.episodes_per_update:
            return next(self._unfinished(), None)
        return min(self._unfinished(), key=lambda ticket: ticket.born, default=None)

    def under_way(self) -> list[Ticket]:
        """Groups that are not finished."""
        return [*self._unfinished()]

    def _unfinished(self) -> Iterator[Ticket]:
        """In the order in which they were admitted."""
        for number, ticket in self._outstanding.items():
            if number not in self._delivered:
                yield ticket

    @property
    def outstanding(self) -> dict[int, Ticket]:
        """What may still be handed out for training, by number."""
        return self._outstanding

    @property
    def num_delivered_episodes(self) -> int:
        """Episodes that wait for their update."""
        return self._num_delivered_episodes

    def forget(self) -> None:
        """Forgets every group; late news of one is harmless."""
        self._outstanding.clear()
        self._due.clear()
        self._delivered.clear()
        self._by_age.clear()
        self._num_delivered_episodes = 0
        self._in_training.clear()

    def is_delivered(self, number: int) -> bool:
        """Whether a group is finished and waits for its update."""
        return number in self._delivered

    def _take(self, number: int) -> None:
        """Removes a group from what is outstanding."""
        ticket = self._outstanding.pop(number, None)
        if ticket is None:
            return
        self._due[ticket.born] -= ticket.num_episodes
        if not self._due[ticket.born]:
            del self._due[ticket.born]
        if self._delivered.pop(number, None) is not None:
            self._num_delivered_episodes -= ticket.num_episodes

    @property
    def _next_update_version(self) -> int:
        """Of the first update whose batch is still open."""
        if self._in_training:
            return max(self.learner_version, self._training_version + 1)
        return self.learner_version

    def _feasible(self, due: Mapping[int, int], version: int) -> bool:
        """Whether all meet their deadlines, the next update being at ``version``."""
        num_due = 0
        for born in sorted(due):
            num_due += due[born]
            updates_left = born + self.max_staleness - version + 1
            if num_due > updates_left * self.episodes_per_update:
                return False
        return True
