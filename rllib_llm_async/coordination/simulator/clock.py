"""Simulated time."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Something will happen, so many seconds from now."""
        time = self.now + seconds
        heapq.heappush(self._events, (time, next(self._order), event))

    def go_on(self) -> None:
        """The next event happens."""
        self.now, _, event = heapq.heappop(self._events)
        event()
