"""Intervals by bootstrap over seeds and domains, plain and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Resamples, and the share of them that an interval holds.
NUM_RESAMPLES = 10_000
LEVEL = 0.95
#: Values below which an interval says nothing.
LEAST = 5


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its interval; of under `LEAST` values, their range."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.mean:.3f}"
        if self.count < LEAST:
            return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def excludes_zero(self) -> bool | None:
        """Whether the values speak for a difference; None if they are too few to say:
        even without one, four are of one sign once in eight times."""
        return None if self.count < LEAST else not self.low <= 0 <= self.high


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile interval of the mean (Efron, 1979); of under `LEAST` values no more
    than where they lie.

    Args:
        values: One per run, or the difference of two runs that share all but an arm.
        seed: Of the resampling.

    Raises:
        ValueError: If there are none.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    array = np.asarray(values, dtype=float)
    if len(array) < LEAST:
        ends = float(array.min()), float(array.max())
        return Interval(float(array.mean()), *ends, len(array))
    drawn = np.random.default_rng(seed).choice(array, (NUM_RESAMPLES, len(array)))
    low, high = np.quantile(drawn.mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))
