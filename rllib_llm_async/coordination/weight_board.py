"""The newest weights, and the older ones that somebody may still need."""

from __future__ import annotations

from dataclasses import replace
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
        #: Number of publications so far.
        self.newest_serial = 0

    def publish(self, published: PublishedWeights) -> None:
        """Makes a version the newest; it gets the next serial number."""
        self.newest_serial += 1
        self._newest = newest = replace(published, serial=self.newest_serial)
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
        self._trainer_weights.clear()
