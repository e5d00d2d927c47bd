"""What goes wrong in a simulated run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rllib_llm_async.coordination.simulator.runner import SimulatedRunner
    from rllib_llm_async.coordination.simulator.simulation import Simulation


class Faults:
    """Draws faults during the updates of a simulation.

    Args:
        simulation: What they happen to.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._kinds = [
            *6 * [self._crash],
            *3 * [self._stop],
            *6 * [self._give_up],
            *6 * [self._begin_again],
            *3 * [self._get_stuck],
            *2 * [self._evaluate],
            simulation.restore,
            simulation.replace_coordinator,
        ]

    def inject(self, seconds: float) -> None:
        """Draws those of the next so many seconds."""
        simulation = self._simulation
        rng, mean = simulation.rng, simulation.job.faults_per_update
        left = rng.expovariate(1.0)
        while left < mean:
            simulation.clock.after(rng.random() * seconds, rng.choice(self._kinds))
            left += rng.expovariate(1.0)

    def _crash(self) -> None:
        """A runner dies; the driver notices, or nobody before it is back."""
        simulation, rng = self._simulation, self._simulation.rng
        runner = rng.choice(simulation.runners)
        runner.die()
        clock = simulation.clock
        comes_back = rng.choice([rng.uniform(0, 0.3), rng.uniform(0, 5)])
        if rng.random() < 0.5:
            clock.after(
                rng.random() * comes_back,
                lambda: simulation.coordinator.lose(runner.number),
            )
        clock.after(comes_back, lambda: runner.connect(simulation.coordinator))

    def _stop(self) -> None:
        """SIGSTOP: for seconds, for longer than the coordinator waits, or for good."""
        simulation, rng = self._simulation, self._simulation.rng
        seconds = rng.choice([rng.uniform(0, 5), rng.uniform(50, 90), math.inf])
        runner = rng.choice(simulation.runners)
        if runner.number == 0:
            seconds = min(seconds, 90.0)  # somebody has to be left
        runner.stop_until(simulation.clock.now + seconds)

    def _give_up(self) -> None:
        if (found := self._group()) is not None:
            found[0].give_up(found[1])

    def _begin_again(self) -> None:
        if (found := self._group()) is not None:
            found[0].begin_again(found[1])

    def _get_stuck(self) -> None:
        if (found := self._group()) is not None:
            found[0].get_stuck(found[1], self._simulation.rng.uniform(10, 100))

    def _evaluate(self) -> None:
        self._simulation.evaluate(self._simulation.rng.uniform(0, 10))

    def _group(self) -> tuple[SimulatedRunner, int] | None:
        """A group that is under way somewhere."""
        rng = self._simulation.rng
        under_way = [(r, n) for r in self._simulation.runners for n in r.groups]
        return rng.choice(under_way) if under_way else None
