"""An env runner of the simulator: sessions, an engine and episodes, as durations."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rllib_llm_async.coordination.ledger import LedgerEpisode
from rllib_llm_async.coordination.simulator.clock import Clock
from rllib_llm_async.coordination.simulator.job import Job
from rllib_llm_async.coordination.staleness_gate import Ticket

#: Newest installations that are remembered: no episode lasts for more versions.
NUM_INSTALLATIONS = 16
#: A runner says that it is there at least so often.
POLL_SECONDS = 5.0


@dataclass
class SimulatedEpisode:
    """``ended``: None while it is under way."""

    key: int
    num_tokens: int
    began: float
    ends: float
    ended: float | None = None

    def num_sampled(self, now: float) -> int:
        """Tokens so far, of ``num_tokens`` in all."""
        length = max(self.ends - self.began, 1e-12)
        return min(self.num_tokens, int(self.num_tokens * (now - self.began) / length))


@dataclass(frozen=True)
class FinishedEpisodes:
    """A finished group; ``mean`` and ``oldest`` are versions of its tokens."""

    number: int
    episodes: list[LedgerEpisode]
    mean: float
    oldest: int
    num_multi_version: int


@dataclass
class SimulatedReport:
    """Like `messages.Report`."""

    num_places: int
    engine_version: int | None = None
    finished: list[FinishedEpisodes] = field(default_factory=list)
    given_up: list[int] = field(default_factory=list)
    #: Number of a group and tokens of a try that is played again.
    lost_tries: list[tuple[int, int]] = field(default_factory=list)
    progress: dict[int, int] = field(default_factory=dict)


class Office(Protocol):
    """What a runner asks of its coordinator; takes effect at once."""

    def register(self, runner: SimulatedRunner) -> int: ...
    def hear(self, runner: SimulatedRunner, session: int) -> bool: ...
    def report(
        self, runner: SimulatedRunner, session: int, report: SimulatedReport
    ) -> bool: ...
    @property
    def newest_version(self) -> int: ...


class SimulatedRunner:
    """Plays groups. Whatever it says takes ``job.message_seconds`` to be heard.

    Args:
        number: Its number.
        job: See there.
        clock: Of the simulation.
        rng: Of the simulation.
        keys: Of episodes.
    """

    def __init__(
        self,
        number: int,
        job: Job,
        clock: Clock,
        rng: random.Random,
        keys: itertools.count,
    ) -> None:
        self.number = number
        self._job = job
        self._clock = clock
        self._rng = rng
        self._keys = keys
        #: Counts lives: what an earlier one had planned does not happen.
        self._life = 0
        self._stopped_until = 0.0
        self.session = -1
        self.groups: dict[int, list[SimulatedEpisode]] = {}

    # --- Sessions -----------------------------------------------------------------

    def connect(self, office: Office) -> None:
        """Begins anew with a coordinator; what was under way counts for nothing."""
        self.die()
        self._office = office
        self._later(self._job.message_seconds(self._rng), self._register)

    def die(self) -> None:
        """All is gone but the messages that are on their way."""
        self._life += 1
        self.session = -1
        self.groups = {}
        self._installed: list[tuple[float, int]] = []
        self._report = SimulatedReport(self._job.episodes_per_runner)
        self._is_reporting = self._has_news = self._is_installing = False

    def hand_out(self, has_come: Callable[[], None]) -> None:
        """Finished episodes leave the runner, if it still lives by then."""
        self._later(2 * self._job.message_seconds(self._rng), has_come)

    def stop_until(self, time: float) -> None:
        """Nothing happens here before: a SIGSTOP, or an engine that is interrupted."""
        self._stopped_until = max(self._stopped_until, time)

    def _register(self) -> None:
        self.session = self._office.register(self)
        self.install()
        self._later(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        if self._office.hear(self, self.session):
            self._later(POLL_SECONDS, self._poll)
        else:
            self.connect(self._office)

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        life = self._life

        def happens() -> None:
            if life != self._life:
                return
            if self._stopped_until == math.inf:
                return
            if self._clock.now < self._stopped_until:
                self._clock.after(self._stopped_until - self._clock.now, happens)
            else:
                event()

        self._clock.after(seconds, happens)

    # --- Orders -------------------------------------------------------------------

    def install(self) -> None:
        """Brings the newest weights into the engine, one version at a time."""
        if self.session >= 0 and not self._is_installing:
            self._is_installing = True
            version = self._office.newest_version
            seconds = self._job.install_seconds(self._rng)
            self._later(seconds, lambda: self._has_installed(version))

    def _has_installed(self, version: int) -> None:
        self._is_installing = False
        newest = self._installed[1 - NUM_INSTALLATIONS :]
        self._installed = [*newest, (self._clock.now, version)]
        self._report.engine_version = version
        self._send_report()
        if version != self._office.newest_version:
            self.install()

    def take(self, ticket: Ticket, session: int) -> None:
        """A ticket is on its way; nobody asks for it once the session is over."""
        if session == self.session:
            seconds = self._job.message_seconds(self._rng)
            self._later(seconds, lambda: self._play(ticket))

    def _play(self, ticket: Ticket) -> None:
        now, rng = self._clock.now, self._rng
        self.groups[ticket.number] = group = []
        for _ in range(ticket.num_episodes):
            seconds = max(0.0, self._job.episode_seconds(rng))
            episode = SimulatedEpisode(
                next(self._keys), rng.randint(1, 20), now, now + seconds
            )
            group.append(episode)
            self._end_later(ticket.number, episode)

    # --- Episodes end -------------------------------------------------------------

    def _end_later(self, number: int, episode: SimulatedEpisode) -> None:
        ends = episode.ends

        def end() -> None:
            # Unless it was begun again, has got stuck, or its group was given up.
            if episode.ends == ends and number in self.groups:
                self._end_episode(number, episode)

        self._later(ends - self._clock.now, end)

    def _end_episode(self, number: int, episode: SimulatedEpisode) -> None:
        episode.ended = self._clock.now
        self._report.num_places += 1
        group = self.groups[number]
        if all(each.ended is not None for each in group):
            del self.groups[number]
            self._report.finished.append(self._finished(number, group))
        self._send_report()

    def give_up(self, number: int) -> None:
        """An environment fails once too often."""
        group = self.groups.pop(number)
        self._report.num_places += sum(each.ended is None for each in group)
        self._report.given_up.append(number)
        self._send_report()

    def begin_again(self, number: int) -> None:
        """An environment fails, and its episode is played once more."""
        for episode in self.groups[number]:
            if episode.ended is None:
                now = self._clock.now
                lost = (number, episode.num_sampled(now))
                self._report.lost_tries.append(lost)
                episode.ends += now - episode.began
                episode.began = now
                self._end_later(number, episode)
                self._send_report()
                return

    def get_stuck(self, number: int, seconds: float) -> None:
        """An environment says nothing for so long."""
        for episode in self.groups[number]:
            if episode.ended is None:
                episode.ends += seconds
                self._end_later(number, episode)
                return

    def _finished(self, number: int, group: list[SimulatedEpisode]) -> FinishedEpisodes:
        ages = [self._versions(episode) for episode in group]
        return FinishedEpisodes(
            number,
            [LedgerEpisode(e.key, e.num_tokens, 1.0, "simulated") for e in group],
            sum(mean for mean, _, _ in ages) / len(group),
            min(first for _, first, _ in ages),
            sum(first < last for _, first, last in ages),
        )

    def _versions(self, episode: SimulatedEpisode) -> tuple[float, int, int]:
        """Mean version of an episode's tokens over its time, the first and the last."""
        assert episode.ended is not None
        began, ended = episode.began, max(episode.ended, episode.began + 1e-12)
        times = [*(time for time, _ in self._installed[1:]), math.inf]
        mean, seen = 0.0, list[int]()
        for (start, version), end in zip(self._installed, times, strict=True):
            inside = min(end, ended) - max(start, began)
            if inside > 0:
                mean += inside / (ended - began) * version
                seen.append(version)
        return mean, seen[0], seen[-1]

    # --- Reports ------------------------------------------------------------------

    def _send_report(self) -> None:
        """What has happened goes out, one report at a time."""
        self._has_news = self._is_reporting
        if self._is_reporting or self.session < 0:
            return
        self._is_reporting = True
        session, office, report = self.session, self._office, self._report
        self._report = SimulatedReport(report.num_places, report.engine_version)
        if self._job.faults_per_update:
            now = self._clock.now
            for number, group in self.groups.items():
                report.progress[number] = sum(e.num_sampled(now) for e in group)

        def arrives() -> None:
            goes_on = office.report(self, session, report)
            answer = self._job.message_seconds(self._rng)
            self._clock.after(answer, lambda: answered(goes_on))

        def answered(goes_on: bool) -> None:
            if self.session != session or self._office is not office:
                return
            self._is_reporting = False
            if not goes_on:
                self.connect(office)
            elif self._has_news:
                self._send_report()

        seconds = self._job.message_seconds(self._rng)
        for _ in range(1 + (self._rng.random() < self._job.double_fraction)):
            self._clock.after(seconds, arrives)
