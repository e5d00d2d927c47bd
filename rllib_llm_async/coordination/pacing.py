"""Admission just in time: groups start as late as the learner's next updates allow.

`StalenessGate` says what may start without breaking the bound. If everything that may
start did, groups would end early and grow old in the queue, every token as old as the
bound permits. So a group waits here for the moment from which it would come late.

The updates to come are expected at t_1 (when the learner is free), t_1 + U, t_1 + 2U,
..., with U the time of an update. By t_i there have to be i * B episodes. Of those
under way a share is expected then, from the durations of former groups given how long
each has run already. What is missing has to start at the latest at

    t_i - D - (missing - places) / rate - margin

with D the time of a typical group, ``places`` the episodes that all engines together
play at once and ``rate`` how many of these end per second. A group that would start
after t_i - U starts then: its tokens are of the version that is published at that time
anyhow, and it has longer until it is too old; but for a small share of them, that keep
engines at work while the version changes. The margin closes the
loop: it grows by what the learner had to wait for episodes and shrinks while it does
not. A learner that has enough episodes and waits for one that is due needs something
else: the later in a version's time a group starts, the less time it has until it is too
old. So these waits move starts back, as far as the publication before. If that does
not cure them, durations have a heavy tail: starts move on, towards what the bound alone
would admit, since the slow groups of several updates are then waited for at once.

Pure arithmetic on times that the caller gives, in seconds of any clock.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Quantile of the durations of former groups: D above. Those that take longer are made
#: up for by those that began earlier.
TYPICAL = 0.7
#: Standard deviations of what is expected that have to be there beyond the mean.
SAFETY = 1.0
#: Former groups and updates that expectations come from.
NUM_GROUPS, NUM_UPDATES = 256, 8
#: Share of its time that the learner may wait before the margin grows.
ACCEPTED_WAIT = 0.01
#: Share of an update's time for which it is better to wait for a newer version.
SOON = 0.1
#: Share of an update's episodes that start before its version is expected, and by what
#: share of D: engines would stand idle while the weights change. Few at a time they end
#: sooner than D, and not before the version is there.
OVERLAP, OVERLAP_LEAD = 0.1, 0.25
#: Shortest age of an expectation before it is worked out again, in updates and, where
#: these are short, in seconds.
PLAN_LIFETIME, LEAST_PLAN_SECONDS = 0.02, 0.02


@dataclass(frozen=True)
class LoopState:
    """What there is to go by.

    ``num_ready``: finished episodes that wait for an update. ``started``: when each
    running group, of ``group_size`` episodes, started. ``num_places``: episodes that
    all engines together play at once.
    """

    num_ready: int
    started: list[float]
    group_size: int
    num_places: int


class Pacing:
    """When the next group has to start.

    Args:
        episodes_per_update: B above.
        max_staleness: Updates to come are looked at up to this many and one.
    """

    def __init__(self, episodes_per_update: int, max_staleness: int) -> None:
        self._batch = episodes_per_update
        self._horizon = max_staleness + 1
        self._durations: deque[float] = deque(maxlen=NUM_GROUPS)
        self._sorted = np.zeros(0)
        self._updates: deque[float] = deque(maxlen=NUM_UPDATES)
        #: U above; None before the first update has ended.
        self.update_seconds: float | None = None
        self._began: float | None = None
        self._wanted: float | None = None
        self._enough_at: float | None = None
        self._kept = 1.0
        self._excused = True
        self.margin = self.slack = 0.0
        self._plan: list[_Need] = []
        self._plan_ends = -math.inf
        #: When the next group has to start, by the plan; None: to be worked out.
        self._next: float | None = None
        self._first = self._update = 0.0

    # --- What is observed ---------------------------------------------------------

    def group_ended(self, seconds: float, *, kept: bool) -> None:
        """A group has come to its end after so long; dropped ones teach nothing."""
        self._kept += (kept - self._kept) / 32
        if kept:
            self._durations.append(seconds)

    def group_dropped(self) -> None:
        """A group, finished or not, is missing: what was expected is void."""
        self._plan_ends = -math.inf

    def update_ended(self, now: float) -> None:
        """The update under way, if any, is over."""
        if self._began is not None:
            self._updates.append(now - self._began)
            self.update_seconds = statistics.median(self._updates)
            self._began = None

    def learner_wants(self, now: float, *, enough: bool) -> None:
        """The learner asks for its next batch; asking again changes nothing.

        Args:
            now: The time.
            enough: Whether as many episodes are ready as it needs. What it waits for
                then is a group that is due, and earlier starts would not help.
        """
        self.update_ended(now)
        if self._wanted is None:
            self._wanted = now
            self._plan_ends = -math.inf
        if enough and self._enough_at is None:
            self._enough_at = now

    def learner_got(self, now: float) -> None:
        """The learner has its batch."""
        update = self.update_seconds
        if self._wanted is not None and update is not None and not self._excused:
            enough_at = now if self._enough_at is None else self._enough_at
            most = self._horizon * update
            late = enough_at - self._wanted
            self.margin = _corrected(self.margin, late, update, most)
            self.slack = _corrected(self.slack, now - enough_at, update, most)
        self._excused = False
        self._wanted = self._enough_at = None
        self._began = now
        self._plan_ends = -math.inf

    def learner_pauses(self) -> None:
        """An evaluation or a fault: the next wait says nothing about the groups."""
        self._wanted = self._began = self._enough_at = None
        self._excused = True
        self._plan_ends = -math.inf

    # --- What follows from it -----------------------------------------------------

    def start_at(self, now: float, look: Callable[[], LoopState]) -> float:
        """When the next group should start; ``now`` or before: at once.

        Args:
            now: The time.
            look: Called where the last answer is too old.
        """
        if now >= self._plan_ends:
            self._make_plan(now, look())
            self._next = None
        if self._next is None:
            self._next = min(map(self._with_slack, self._plan), default=math.inf)
        return self._next

    def _with_slack(self, need: _Need) -> float:
        """When the first of what is missing should start, with time to spare."""
        start = need.start
        if not self.slack:
            return start
        # Versions are published when updates end.
        updates_before = math.ceil((self._first - start) / self._update)
        published = self._first - updates_before * self._update
        beyond = max(0.0, self.slack - self._update)
        return max(start - self.slack, published) - beyond

    def started(self, num_episodes: int) -> None:
        """A group has started: so much less is missing, until the next plan."""
        for need in self._plan:
            need.missing -= num_episodes * need.weight
        self._plan = [need for need in self._plan if need.missing > 0]
        self._next = None

    def _make_plan(self, now: float, state: LoopState) -> None:
        update = self.update_seconds
        ages = now - np.array(state.started, np.float64)
        num_running = len(ages) * state.group_size
        if update is None or not self._durations:
            # Nothing is known: one batch, at once.
            missing: float = self._batch - state.num_ready - num_running
            self._plan = [_Need(now, now, missing, 1.0, 0, 1.0)] if missing > 0 else []
            self._plan_ends = now + 0.1
            return
        self._plan_ends = now + max(PLAN_LIFETIME * update, LEAST_PLAN_SECONDS)
        self._sorted = np.sort(np.array(self._durations))
        typical = self._sorted[math.ceil(TYPICAL * (len(self._sorted) - 1))]
        rate = max(state.num_places, 1) / self._sorted.mean()
        if self._began is None:
            ahead = typical  # nothing that starts now is there before
        else:
            # One that is late ends soon, and what starts after it is younger.
            ahead = max(self._began + update - now, SOON * update)
        self._first, self._update = now + ahead, update
        self._plan = []
        shorter = self._share_below(ages)
        idle = self._batch - state.num_ready - num_running
        if self._began is None and idle > 0:
            # Whatever was expected: the learner would wait for ever.
            self._plan.append(_Need(now, now, idle, 1.0, state.num_places, rate))
        for number in range(self._horizon):
            seconds = ahead + number * update
            weight = self._kept * self._share_below(seconds)
            expected, variance = self._expected(
                seconds, ages, shorter, state.group_size
            )
            missing = (
                (number + 1) * self._batch
                + SAFETY * math.sqrt(variance)
                - state.num_ready
                - expected
            )
            # What starts now comes too late for an update much sooner.
            if missing > 0 and weight >= 0.5 * self._kept:
                time = now + seconds
                latest = time - typical - self.margin
                places = state.num_places
                self._plan.append(
                    _Need(latest, time - update, missing, weight, places, rate)
                )
                early = missing - (1 - OVERLAP) * self._batch
                if number and early > 0 and self._began is not None:
                    # In the middle of them, early or late as it may be.
                    published = self._began + number * update
                    start = published - OVERLAP_LEAD * typical
                    self._plan.append(_Need(latest, start, early, weight, places, rate))

    def _expected(
        self, seconds: float, ages: np.ndarray, shorter: np.ndarray, group_size: int
    ) -> tuple[float, float]:
        """Mean and variance of the episodes that end within so many seconds.

        ``ages`` are those of the running groups, ``shorter`` the share of former ones
        that did not take as long as each.
        """
        if not len(ages):
            return 0.0, 0.0
        longer = 1.0 - shorter
        within = self._share_below(ages + seconds) - shorter
        # One that has run for longer than any before may take as long again.
        share = self._kept * np.where(
            longer > 0,
            within / np.maximum(longer, 1e-9),
            np.minimum(seconds / np.maximum(ages, 1e-9), 1.0),
        )
        return float(share.sum()) * group_size, float(
            (share * (1 - share)).sum()
        ) * group_size**2

    def _share_below(self, seconds):
        return np.searchsorted(self._sorted, seconds, side="right") / len(self._sorted)


def _corrected(value: float, waited: float, update: float, most: float) -> float:
    """A margin after one more update, all in seconds."""
    # A wait of several updates says nothing about how early to start.
    value += 0.5 * min(waited, update) - ACCEPTED_WAIT * update
    return min(max(value, 0.0), most)


@dataclass
class _Need:
    """Episodes that one update to come is short of.

    Args:
        latest: When the last of them should start to be there in time.
        published: When the version before the update's own is published: until then a
            later start gains nothing, since its tokens would be of that version, too.
        missing: How many.
        weight: How many of them an episode that starts now is expected to be.
        num_places: Episodes that start at once.
        rate: Episodes per second beyond these.
    """

    latest: float
    published: float
    missing: float
    weight: float
    num_places: int
    rate: float

    @property
    def start(self) -> float:
        """When the first of them should start."""
        too_many = max(0.0, self.missing / self.weight - self.num_places)
        return min(self.latest - too_many / self.rate, self.published)
