"""The coordinator of the simulator: `Coordinator` without its actor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.ledger import LOST, EpisodeFate, Ledger
from rllib_llm_async.coordination.simulator.clock import Clock
from rllib_llm_async.coordination.simulator.job import Job
from rllib_llm_async.coordination.simulator.runner import (
    FinishedEpisodes,
    SimulatedReport,
    SimulatedRunner,
)
from rllib_llm_async.coordination.staleness_gate import Ticket

#: How often what has grown too old is looked for.
SWEEP_SECONDS = 1.0
#: Of the suite.
NUM_TASKS = 100


class SimulatedCoordinator:
    """`Coordinator` without its actor: the same calls in the same order.

    Args:
        job: See there.
        seed: Of the order of tasks.
        clock: Of the simulation.
        on_finished: Called when a group is finished.
    """

    def __init__(
        self, job: Job, seed: int, clock: Clock, on_finished: Callable[[], None]
    ) -> None:
        self.dispatcher = Dispatcher(
            job.episodes_per_update,
            job.max_staleness,
            job.group_size,
            seed=seed,
            ticket_timeout_s=job.ticket_timeout_s,
        )
        self.ledger = Ledger()
        #: Episodes by what became of them, and by group those that are outstanding:
        #: counted beside the ledger, from what happened to groups.
        self.fates: Counter[str] = Counter()
        self.outstanding: dict[int, int] = {}
        self.finished: dict[int, FinishedEpisodes] = {}
        #: With their sessions.
        self._runners: dict[int, tuple[SimulatedRunner, int]] = {}
        self._num_places = job.episodes_per_runner
        self._clock = clock
        self._on_finished = on_finished
        self._wake_at = math.inf
        self._is_gone = False
        clock.after(SWEEP_SECONDS, self._sweep)

    # --- Runners ------------------------------------------------------------------

    def register(self, runner: SimulatedRunner) -> int:
        session = self.dispatcher.register(
            runner.number, NUM_TASKS, self._num_places, self._clock.now
        )
        self._runners[runner.number] = runner, session
        self.allot()
        return session

    def hear(self, runner: SimulatedRunner, session: int) -> bool:
        now = self._clock.now
        return self.dispatcher.session(runner.number, session, now) is not None

    def lose(self, runner: int) -> None:
        """A runner is known to have died."""
        self._runners.pop(runner, None)
        self.dispatcher.lose(runner)
        self.allot()

    def report(
        self, runner: SimulatedRunner, session: int, report: SimulatedReport
    ) -> bool:
        if not self.hear(runner, session):
            return False
        self.ledger.progress(report.progress)
        for number, num_tokens in report.lost_tries:
            self.ledger.lose_tokens(number, num_tokens, "turn_timeout")
        for number in report.given_up:
            self.dispatcher.drop(number, "turn_timeout")
        self.dispatcher.has_places(
            runner.number, report.num_places, report.engine_version
        )
        self.allot()
        if report.finished:
            # The episodes are fetched, which a runner that has died cannot answer.
            runner.hand_out(lambda: self._take(runner, session, report.finished))
        return True

    def _take(
        self, runner: SimulatedRunner, session: int, groups: list[FinishedEpisodes]
    ) -> None:
        if not self.hear(runner, session):
            return
        for group in groups:
            if self.dispatcher.finish(group.number, self._clock.now):
                self.ledger.finish(group.number, group.episodes)
                self.finished[group.number] = group
        self._on_finished()
        self.allot()

    # --- Learner and driver -------------------------------------------------------

    @property
    def newest_version(self) -> int:
        return self.dispatcher.learner_version

    def publish(self, version: int) -> None:
        self.dispatcher.publish(version, self._clock.now)
        for runner, _ in self._runners.values():
            runner.install()
        self.allot()

    def stop_engines(self, seconds: float) -> None:
        for runner, _ in self._runners.values():
            runner.stop_until(self._clock.now + seconds)

    def pause(self, paused: bool) -> None:
        self.dispatcher.pause(paused, self._clock.now)
        self.allot()

    def next_batch(self) -> list[Ticket]:
        batch = self.dispatcher.next_batch(self._clock.now)
        self.allot()
        return batch

    def consumed(self, batch: list[Ticket], fates: list[EpisodeFate]) -> None:
        """An update has ended; episodes without a fate are lost."""
        self.ledger.settle(fates)
        for fate in fates:
            is_trained = "trained" if fate.num_trained else "masked"
            self.fates[f"dropped_{fate.reason}" if fate.reason else is_trained] += 1
            self.outstanding[fate.group] -= 1
        for ticket in batch:
            self.ledger.close(ticket.number)
            self.fates[f"dropped_{LOST}"] += self.outstanding.pop(ticket.number)
        self.dispatcher.consume(batch)
        self.allot()

    def get_state(self) -> dict[str, Any]:
        return {
            "next_number": self.dispatcher.next_number,
            "position": self.dispatcher.tasks.position,
            "ledger": self.ledger.get_state(),
            "fates": self.fates.copy(),
            "outstanding": sum(self.outstanding.values()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint, also one of another coordinator."""
        self.dispatcher.forget()
        self.dispatcher.take_dropped()
        self.dispatcher.next_number = state["next_number"]
        self.dispatcher.tasks.position = state["position"]
        self.ledger.set_state(state["ledger"])
        self.ledger.lose_in_flight("restored")
        self.fates = state["fates"].copy()
        self.fates["dropped_restored"] += state["outstanding"]
        self.outstanding.clear()
        self.finished.clear()
        self._runners.clear()

    def close(self) -> None:
        """The actor is gone; what still arrives has no effect."""
        self._is_gone = True

    # --- On the loop --------------------------------------------------------------

    def allot(self) -> None:
        """Hands out tickets, and sets the clock for those that have to wait."""
        if self._is_gone:
            return
        now = self._clock.now
        for ticket, reason in self.dispatcher.take_dropped():
            self.ledger.drop(ticket.number, reason)
            self.fates[f"dropped_{reason}"] += self.outstanding.pop(ticket.number)
            self.finished.pop(ticket.number, None)
        for ticket in self.dispatcher.allot(now):
            self.ledger.start(ticket.number, ticket.num_episodes, "simulated")
            self.fates["started"] += ticket.num_episodes
            self.outstanding[ticket.number] = ticket.num_episodes
            runner, session = self._runners[ticket.runner]
            runner.take(ticket, session)
        at = self.dispatcher.look_again_at(now)
        # One timer at a time: earlier ones make later ones needless.
        if at is not None and not now < self._wake_at <= at:
            self._wake_at = max(at, now + 1e-3)
            self._clock.after(self._wake_at - now, self.allot)

    def _sweep(self) -> None:
        if not self._is_gone:
            self.dispatcher.give_up_late(self._clock.now)
            self.allot()
            self._on_finished()
            self._clock.after(SWEEP_SECONDS, self._sweep)
