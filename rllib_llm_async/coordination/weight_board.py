"""The newest weights, and the older ones that somebody may still need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rllib_llm_async.coordination.messages import PublishedWeights

if TYPE_CHECKING:
    import ray


class WeightBoard:
    """Keeps references only.

    Args:
        max_staleness: For how many versions trainer weights stay.
    """

    def __init__(self, max_staleness: int) -> None:
        self._max_staleness = max_staleness
        self._trainer_weights: list[PublishedWeights] = []
        self._newest: PublishedWeights | None = None
        self._withdrawn = 0  # all serials up to here
        #: Of what was announced last.
        self.newest_serial = 0

    def announce(self) -> int:
        """A version is on its way; returns the next serial number, which is its."""
        self.newest_serial += 1
        return self.newest_serial

    def publish(self, newest: PublishedWeights) -> None:
        """Makes an announced version the newest, unless it was withdrawn since."""
        if newest.serial <= self._withdrawn:
            return
        self._newest = newest
        if newest.trainer_weights is not None:
            oldest = newest.version - self._max_staleness
            self._trainer_weights = [
                *(p for p in self._trainer_weights if p.version >= oldest),
                newest,
            ]

    def newer_than(self, serial: int) -> PublishedWeights | None:
        """The newest weights, if they were published after those of ``serial``."""
        newest = self._newest
        return newest if newest is not None and newest.serial > serial else None

    def trainer_weights(self, serial: int) -> list[tuple[int, int, ray.ObjectRef]]:
        """Serial, version and trained weights published after those of ``serial``."""
        return [
            (p.serial, p.version, p.trainer_weights)
            for p in self._trainer_weights
            if p.serial > serial and p.trainer_weights is not None
        ]

    def forget(self) -> None:
        """Withdraws what belongs to versions that a restored learner has not seen."""
        self._newest = None
        self._withdrawn = self.newest_serial
        self._trainer_weights.clear()
