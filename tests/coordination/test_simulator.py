"""The loop against a simulated clock, under faults, in thousands of orderings.

Each seed draws a job (bound, sizes, durations of everything, latency of messages, time-
outs) and runs it while runners crash, stop and come back, episodes fail, are played
again or get stuck, messages come late and twice, evaluations pause the loop, updates
publish nothing, learners go back to checkpoints, and coordinators are replaced.
"""

import math
import random

import pytest

from rllib_llm_async.coordination.simulator import Job, Simulation
from rllib_llm_async.result_keys import ledger_count

pytestmark = pytest.mark.thorough

NUM_UPDATES = 10


def draw_job(rng: random.Random, **settings) -> Job:
    group_size = rng.choice([1, 2, 4])
    longest = rng.choice([0.5, 2.0, 8.0])
    latency = rng.choice([0.0, 0.05, 0.5])
    slowest_install = rng.choice([0.01, 0.5, 3.0])
    return Job(
        **{
            "episodes_per_update": group_size * rng.randint(1, 4),
            "max_staleness": rng.randint(0, 3),
            "group_size": group_size,
            "num_runners": rng.randint(1, 4),
            "episodes_per_runner": group_size * rng.randint(1, 3),
            "episode_seconds": lambda rng: longest * rng.random() ** 3,
            "update_seconds": lambda rng: rng.uniform(0.5, 1.5),
            "install_seconds": lambda rng: rng.uniform(0, slowest_install),
            "message_seconds": lambda rng: rng.uniform(0, latency),
            "interruption_seconds": rng.choice([0.0, 0.0, 0.3]),
            "ticket_timeout_s": rng.choice([None, 20.0]),
            "faults_per_update": rng.choice([0.3, 1.0, 3.0]),
            "no_signal_fraction": 0.1,
            "double_fraction": 0.1,
            **settings,
        }
    )


class Watched(Simulation):
    """Compares what everybody holds after each update.

    Args:
        job: See there.
        seed: Of everything.
        is_greedy: Whether groups start as soon as the bound admits them.
    """

    def __init__(self, job, seed, is_greedy=False):
        self._is_greedy = is_greedy
        super().__init__(job, seed)

    def _new_coordinator(self):
        coordinator = super()._new_coordinator()
        if self._is_greedy:
            coordinator.dispatcher.pacing.start_at = lambda now, look: -math.inf
        return coordinator

    def try_update(self):
        was_training = self.training
        super().try_update()
        waiting = self.coordinator.dispatcher._gate._delivered.values()
        if self.training and not was_training and waiting:
            youngest = max(ticket.born for ticket in self.training)
            assert youngest <= min(ticket.born for ticket in waiting)

    def _publish(self, fates):
        super()._publish(fates)
        self.check()

    def restore(self):
        super().restore()
        self.check()

    def check(self):
        coordinator = self.coordinator
        assert coordinator.ledger.identity_error() == 0
        metrics = coordinator.ledger.metrics()
        for fate, count in coordinator.fates.items():
            assert metrics.get(ledger_count("episodes", fate), 0) == count, fate
        in_flight = sum(coordinator.outstanding.values())
        assert metrics[ledger_count("episodes", "in_flight")] == in_flight
        assert {*coordinator.outstanding} == {*coordinator.dispatcher._groups}
        for runner in self.runners:
            playing = [e for group in runner.groups.values() for e in group]
            num_playing = sum(episode.ended is None for episode in playing)
            assert num_playing <= self.job.episodes_per_runner


def check_seed(seed: int) -> None:
    rng = random.Random(seed)
    job = draw_job(rng)
    simulation = Watched(job, seed, is_greedy=rng.random() < 0.5)
    outcome = simulation.run(NUM_UPDATES)
    assert max(outcome.oldest) <= job.max_staleness
    assert min(outcome.staleness) >= -1e-9
    for batch in outcome.batches:
        assert len(batch) * job.group_size == job.episodes_per_update
        assert len({*batch}) == len(batch)


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_whatever_happens_the_loop_goes_on_and_accounts_for_everything(start):
    for seed in range(start, start + 100):
        check_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(10_000, 60_000, 1000))
def test_whatever_happens_thousands_of_times(start):
    for seed in range(start, start + 1000):
        check_seed(seed)


@pytest.mark.parametrize("is_greedy", [False, True], ids=["paced", "greedy"])
@pytest.mark.parametrize("seed", range(5))
def test_bound_zero_is_the_synchronous_algorithm(seed, is_greedy):
    """Each update is made of the next groups in order, and nothing runs beside it."""

    class Synchronous(Watched):
        def _publish(self, fates):
            assert len(self.coordinator.outstanding) == len(self.training)
            assert not any(runner.groups for runner in self.runners)
            super()._publish(fates)

    job = draw_job(
        random.Random(seed),
        max_staleness=0,
        faults_per_update=0.0,
        no_signal_fraction=0.0,
        ticket_timeout_s=None,
    )
    outcome = Synchronous(job, seed, is_greedy).run(20)
    per_update = job.episodes_per_update // job.group_size
    numbers = [number for batch in outcome.batches for number in sorted(batch)]
    assert numbers == [*range(20 * per_update)]
    assert not any(outcome.oldest) and outcome.num_multi_version == 0


def test_a_loop_that_stands_still_is_noticed():
    job = draw_job(random.Random(0), faults_per_update=0.0, ticket_timeout_s=None)
    simulation = Simulation(job)
    simulation.run(2)
    for runner in simulation.runners:
        runner.stop_until(math.inf)
    with pytest.raises(RuntimeError, match="deadlock after"):
        simulation.run(10)
