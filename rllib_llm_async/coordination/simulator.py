"""The loop's decisions against a simulated clock: no engines, no Ray, no waiting.

Runners, engines and the learner are reduced to durations; `Dispatcher` and `Ledger` are
the real ones. A run of thousands of updates takes seconds, so that orderings can be
tried by the thousand, and settings be chosen before a cluster is rented.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.ledger import EpisodeFate, Ledger, LedgerEpisode
from rllib_llm_async.coordination.staleness_gate import Ticket

Seconds = Callable[[random.Random], float]


@dataclass(frozen=True)
class Job:
    """A run, in durations.

    ``episode_seconds``, ``update_seconds`` and ``install_seconds`` draw one duration
    each. ``faults_per_update`` is how many things happen on average during an update:
    an engine or a runner dies, an episode is given up, a restore from a checkpoint.
    """

    episodes_per_update: int
    max_staleness: int
    group_size: int
    num_runners: int
    episodes_per_runner: int
    episode_seconds: Seconds
    update_seconds: Seconds
    install_seconds: Seconds = lambda rng: 0.01
    faults_per_update: float = 0.0
    #: Time for a runner to come back.
    restart_seconds: float = 1.0


@dataclass
class Outcome:
    """What came of a simulated run.

    ``staleness`` holds the mean age of each trained group's tokens at its update,
    ``oldest`` the age of its oldest token, in versions.
    """

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


@dataclass
class _Episode:
    """Of a group under way: when it began, and at which version of its engine."""

    ticket: Ticket
    session: int
    began: float
    ended: float | None = None


class Simulation:
    """One run of a `Job`.

    Args:
        job: See there.
        seed: Of all durations and faults.
    """

    def __init__(self, job: Job, seed: int = 0) -> None:
        self.job = job
        self.now = 0.0
        self._rng = random.Random(seed)
        self.dispatcher = Dispatcher(
            job.episodes_per_update, job.max_staleness, job.group_size, seed=seed
        )
        self.ledger = Ledger()
        self.outcome = Outcome()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._keys = itertools.count()
        self._wake_at = float("inf")
        #: By runner: its session, and when its engine got which version.
        self._sessions: dict[int, int] = {}
        self._places: dict[int, int] = {}
        self._installed: dict[int, list[tuple[float, int]]] = {}
        self._groups: dict[int, list[_Episode]] = {}
        #: By number: mean and oldest version of the tokens, keys of the episodes.
        self._finished: dict[int, tuple[float, int, list[int]]] = {}
        self._wants_since: float | None = 0.0
        for runner in range(job.num_runners):
            self._restart(runner)

    def run(self, num_updates: int) -> Outcome:
        """Goes on until so many more updates have ended.

        Raises:
            RuntimeError: If nothing more can ever happen: a deadlock.
        """
        target = len(self.outcome.waits) + num_updates
        self._try_update()
        while len(self.outcome.waits) < target:
            self._allot()
            if not self._events:
                raise RuntimeError(
                    f"deadlock after {len(self.outcome.waits)} updates: learner at "
                    f"version {self.dispatcher.learner_version}, "
                    f"{self.dispatcher.num_ready} episodes are ready"
                )
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.outcome.seconds = self.now
        return self.outcome

    # --- Events -------------------------------------------------------------------

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), event))

    def _restart(self, runner: int) -> None:
        job = self.job
        self._sessions[runner] = self.dispatcher.register(
            runner, 100, job.episodes_per_runner, self.now
        )
        self._places[runner] = job.episodes_per_runner
        self._installed[runner] = []
        self._install(runner)

    def _install(self, runner: int) -> None:
        session = self._sessions[runner]
        version = self.dispatcher.learner_version

        def installed() -> None:
            if self._sessions.get(runner) == session:
                # Episodes are shorter than sixteen versions.
                self._installed[runner] = [
                    *self._installed[runner][-15:],
                    (self.now, version),
                ]
                self._report(runner)

        self._at(self.now + self.job.install_seconds(self._rng), installed)

    def _report(self, runner: int) -> None:
        if self._sessions[runner] >= 0 and self._installed[runner]:
            self.dispatcher.session(runner, self._sessions[runner], self.now)
            self.dispatcher.has_places(
                runner, self._places[runner], self._installed[runner][-1][1]
            )

    def _allot(self) -> None:
        self._account_for_drops()
        for runner, session in self._sessions.items():
            self.dispatcher.session(runner, session, self.now)
        for ticket in self.dispatcher.allot(self.now):
            self.ledger.start(ticket.number, ticket.num_episodes, "simulated")
            group = self._groups[ticket.number] = [
                _Episode(ticket, self._sessions[ticket.runner], self.now)
                for _ in range(ticket.num_episodes)
            ]
            for episode in group:
                self._at(
                    self.now + max(0.0, self.job.episode_seconds(self._rng)),
                    lambda episode=episode: self._end_episode(episode),
                )
        at = self.dispatcher.look_again_at(self.now)
        # One wake-up at a time: earlier ones make later ones needless.
        if at is not None and not self.now < self._wake_at <= at:
            self._wake_at = max(at, self.now + 1e-6)
            self._at(self._wake_at, lambda: None)

    def _end_episode(self, episode: _Episode) -> None:
        runner, number = episode.ticket.runner, episode.ticket.number
        if self._sessions.get(runner) != episode.session:
            return  # its runner has died
        episode.ended = self.now
        self._places[runner] += 1
        group = self._groups.get(number)
        if group is not None and all(e.ended is not None for e in group):
            self._finish(number, group)
        self._report(runner)
        self._try_update()

    def _finish(self, number: int, group: list[_Episode]) -> None:
        del self._groups[number]
        if not self.dispatcher.finish(number, self.now):
            return
        keys = [next(self._keys) for _ in group]
        self.ledger.finish(
            number, [LedgerEpisode(key, 10, 1.0, "simulated") for key in keys]
        )
        total, oldest = 0.0, self.dispatcher.learner_version
        for episode in group:
            mean, first, last = self._versions(episode)
            total += mean
            oldest = min(oldest, first)
            self.outcome.num_episodes += 1
            self.outcome.num_multi_version += first < last
        self._finished[number] = total / len(group), oldest, keys

    def _versions(self, episode: _Episode) -> tuple[float, int, int]:
        """Mean version of an episode's tokens over its time, the first and the last."""
        assert episode.ended is not None
        history = self._installed[episode.ticket.runner]
        times = [*(time for time, _ in history[1:]), float("inf")]
        mean, seen = 0.0, list[int]()
        length = max(episode.ended - episode.began, 1e-12)
        for (start, version), end in zip(history, times, strict=True):
            inside = min(end, episode.ended) - max(start, episode.began)
            if inside > 0 or (not seen and end > episode.ended):
                mean += max(inside, 0.0) / length * version
                seen.append(version)
        return mean, seen[0], seen[-1]

    # --- Learner ------------------------------------------------------------------

    def _try_update(self) -> None:
        if self._wants_since is None:
            return
        batch = self.dispatcher.next_batch(self.now)
        if not batch:
            return
        version = self.dispatcher.learner_version
        fates = []
        for ticket in batch:
            mean, oldest, keys = self._finished.pop(ticket.number)
            fates += [EpisodeFate(ticket.number, key, num_trained=10) for key in keys]
            self.outcome.staleness.append(version - mean)
            self.outcome.oldest.append(version - oldest)
        self.outcome.waits.append(self.now - self._wants_since)
        self._wants_since = None
        seconds = self.job.update_seconds(self._rng)
        self._at(self.now + seconds, lambda: self._end_update(batch, fates))
        for _ in range(_poisson(self._rng, self.job.faults_per_update)):
            self._at(self.now + self._rng.random() * seconds, self._fault)

    def _end_update(self, batch: list[Ticket], fates: list[EpisodeFate]) -> None:
        if self._rng.random() < 0.95 or not self.job.faults_per_update:
            self.dispatcher.publish(self.dispatcher.learner_version + 1, self.now)
            for runner in self._sessions:
                if self._sessions[runner] >= 0:
                    self._install(runner)
        self.ledger.settle(fates)
        for ticket in batch:
            self.ledger.close(ticket.number)
        self.dispatcher.consume(batch)
        self._wants_since = self.now
        self._try_update()

    # --- Faults -------------------------------------------------------------------

    def _fault(self) -> None:
        kind = self._rng.choice(["runner", "episode", "silence", "restore"])
        runner = self._rng.randrange(self.job.num_runners)
        if kind == "runner" and self._sessions[runner] >= 0:
            self._sessions[runner] = -1
            self.dispatcher.lose(runner)
            self._at(self.now + self.job.restart_seconds, lambda: self._restart(runner))
        elif kind == "episode" and self._groups:
            self.dispatcher.drop(self._rng.choice(list(self._groups)), "turn_timeout")
        elif kind == "silence":
            self.dispatcher.give_up_late(self.now)
        elif kind == "restore" and self._wants_since is not None:
            self.dispatcher.forget()
            self.dispatcher.publish(
                max(0, self.dispatcher.learner_version - 1), self.now
            )
            for each in self._sessions:
                self._restart(each)
        self._account_for_drops()

    def _account_for_drops(self) -> None:
        for ticket, reason in self.dispatcher.take_dropped():
            self.ledger.drop(ticket.number, reason)
            self._groups.pop(ticket.number, None)
            self._finished.pop(ticket.number, None)


def _poisson(rng: random.Random, mean: float) -> int:
    number, left = 0, rng.expovariate(1.0) if mean else float("inf")
    while left < mean:
        number += 1
        left += rng.expovariate(1.0)
    return number
