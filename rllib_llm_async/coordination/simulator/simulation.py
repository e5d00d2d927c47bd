"""A learner, its coordinator and runners, on one simulated clock."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from rllib_llm_async.coordination.ledger import STALE, EpisodeFate, LedgerEpisode
from rllib_llm_async.coordination.simulator.clock import Clock
from rllib_llm_async.coordination.simulator.coordinator import SimulatedCoordinator
from rllib_llm_async.coordination.simulator.faults import Faults
from rllib_llm_async.coordination.simulator.job import Job, Outcome
from rllib_llm_async.coordination.simulator.runner import SimulatedRunner
from rllib_llm_async.coordination.staleness_gate import Ticket

#: A learner that waits for longer, in seconds, waits for ever.
PATIENCE_SECONDS = 1000.0
#: Updates between two checkpoints.
CHECKPOINT_EVERY = 3


class Simulation:
    """One run of a `Job`.

    Args:
        job: See there.
        seed: Of all durations and faults.
    """

    def __init__(self, job: Job, seed: int = 0) -> None:
        self.job = job
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.outcome = Outcome()
        #: What the learner trains on.
        self.training: list[Ticket] = []
        self.is_evaluating = False
        self._seed = seed
        self._faults = Faults(self)
        #: Counts the learner's lives: an update that it died in does not end.
        self._life = self._num_updates = 0
        self._wants_since = 0.0
        keys = itertools.count()
        self.runners = [
            SimulatedRunner(number, job, self.clock, self.rng, keys)
            for number in range(job.num_runners)
        ]
        self.coordinator = self._new_coordinator()
        self._checkpoint = 0, self.coordinator.get_state()
        self._connect()

    def run(self, num_updates: int) -> Outcome:
        """Goes on until so many more updates have begun.

        Raises:
            RuntimeError: If the learner waits for ever.
        """
        target = len(self.outcome.waits) + num_updates
        began = self.clock.now - self.outcome.seconds
        self.try_update()
        while len(self.outcome.waits) < target:
            self.clock.go_on()
            waited = self.clock.now - self._wants_since
            if not self.training and waited > PATIENCE_SECONDS:
                raise RuntimeError(
                    f"deadlock after {self._num_updates} updates: learner at version "
                    f"{self.coordinator.newest_version}, "
                    f"{self.coordinator.dispatcher.num_ready} episodes are ready"
                )
        self.outcome.seconds = self.clock.now - began
        return self.outcome

    # --- Learner ------------------------------------------------------------------

    def try_update(self) -> None:
        """Begins an update if there are the groups for it."""
        if self.training or self.is_evaluating:
            return
        coordinator, rng = self.coordinator, self.rng
        batch = coordinator.next_batch()
        if not batch:
            return
        self.training = batch
        version = coordinator.newest_version
        fates: list[EpisodeFate] = []
        for ticket in batch:
            group = coordinator.finished.pop(ticket.number)
            fates += map(self._fate, itertools.repeat(ticket.number), group.episodes)
            self.outcome.num_episodes += len(group.episodes)
            self.outcome.num_multi_version += group.num_multi_version
            self.outcome.staleness.append(version - group.mean)
            self.outcome.oldest.append(version - group.oldest)
        self.outcome.batches.append([ticket.number for ticket in batch])
        self.outcome.waits.append(self.clock.now - self._wants_since)
        life, seconds = self._life, self.job.update_seconds(rng)
        self._faults.inject(seconds)

        def publishes() -> None:
            if self._life == life:
                self._publish(fates)

        def stops() -> None:
            if self._life == life and self.job.interruption_seconds:
                coordinator.stop_engines(self.job.interruption_seconds)

        self.clock.after(seconds, stops)
        self.clock.after(seconds + self.job.interruption_seconds, publishes)

    def _fate(self, group: int, episode: LedgerEpisode) -> EpisodeFate:
        """What the learner makes of an episode: nearly all are trained on."""
        fate = EpisodeFate(group, episode.key, num_trained=episode.num_tokens)
        luck = self.rng.random() if self.job.faults_per_update else 1.0
        if luck < 0.03:
            return replace(fate, num_trained=0, reason=STALE)
        if luck < 0.06:
            return replace(fate, num_trained=0, num_masked=episode.num_tokens)
        return fate

    def _publish(self, fates: list[EpisodeFate]) -> None:
        """An update has ended."""
        coordinator = self.coordinator
        if self.rng.random() >= self.job.no_signal_fraction:
            coordinator.publish(coordinator.newest_version + 1)
        else:
            coordinator.publish(coordinator.newest_version)
        coordinator.consumed(self.training, fates)
        self._num_updates += 1
        if self._num_updates % CHECKPOINT_EVERY == 0:
            self._checkpoint = coordinator.newest_version, coordinator.get_state()
        self._wants()

    def _wants(self) -> None:
        self.training = []
        self._wants_since = self.clock.now
        self.try_update()

    # --- What faults do ------------------------------------------------------------

    def restore(self) -> None:
        """Learner and coordinator go back to the newest checkpoint."""
        self._life += 1
        version, state = self._checkpoint
        self.coordinator.restore(state)
        self.coordinator.publish(version)
        self._wants()

    def replace_coordinator(self) -> None:
        """The actor has died; another one begins where the newest checkpoint was."""
        self.coordinator.close()
        self.coordinator = self._new_coordinator()
        self.restore()
        self._connect()

    def evaluate(self, seconds: float) -> None:
        """No training group starts, and no update, for so long."""
        if self.is_evaluating:
            return

        def ends() -> None:
            self.is_evaluating = False
            self.coordinator.pause(False)
            self.try_update()

        self.is_evaluating = True
        self.coordinator.pause(True)
        self.clock.after(seconds, ends)

    def _new_coordinator(self) -> SimulatedCoordinator:
        return SimulatedCoordinator(self.job, self._seed, self.clock, self.try_update)

    def _connect(self) -> None:
        for runner in self.runners:
            runner.connect(self.coordinator)
