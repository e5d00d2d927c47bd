"""What a simulated run is given, and what comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Seconds = Callable[[random.Random], float]


@dataclass(frozen=True)
class Job:
    """A run, in durations.

    Those of type ``Seconds`` draw one duration each. ``message_seconds`` is how long a
    report, its answer or a ticket is on its way. With ``interruption_seconds`` engines
    stop for so long before each new version, and until they have installed it.
    ``faults_per_update`` is how many things happen on average during an update, see
    `simulated_faults`; ``ticket_timeout_s`` as in `Dispatcher`.
    """

    episodes_per_update: int
    max_staleness: int
    group_size: int
    num_runners: int
    episodes_per_runner: int
    episode_seconds: Seconds
    update_seconds: Seconds
    install_seconds: Seconds = lambda rng: 0.01
    message_seconds: Seconds = lambda rng: 0.0
    interruption_seconds: float = 0.0
    faults_per_update: float = 0.0
    ticket_timeout_s: float | None = None
    #: Share of the updates after which nothing is published.
    no_signal_fraction: float = 0.0
    #: Share of the reports that arrive twice.
    double_fraction: float = 0.0


@dataclass
class Outcome:
    """What came of a simulated run.

    ``batches`` holds the numbers of the groups of each update, ``staleness`` the mean
    age of each trained group's tokens at its update, ``oldest`` the age of its oldest
    token, in versions, ``waits`` the learner's before each update, in seconds.
    """

    batches: list[list[int]] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    oldest: list[int] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    seconds: float = 0.0
    num_episodes: int = 0
    num_multi_version: int = 0

    @property
    def wait_fraction(self) -> float:
        """Share of the time that the learner had nothing to do."""
        return sum(self.waits) / self.seconds

    @property
    def mean_staleness(self) -> float:
        """Of all tokens trained on."""
        return sum(self.staleness) / len(self.staleness)

    @property
    def multi_version_fraction(self) -> float:
        """Share of the episodes that an update found under way."""
        return self.num_multi_version / self.num_episodes

    @property
    def updates_per_hour(self) -> float:
        """In simulated hours."""
        return len(self.waits) / self.seconds * 3600
