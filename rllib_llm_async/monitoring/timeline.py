"""When each part of a run was busy with what: the time line of `rllib report`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rllib_llm_async import result_keys

if TYPE_CHECKING:
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

#: Lane ("learner 0"), phase ("training"), start and end in seconds since the epoch.
Span = tuple[str, str, float, float]

#: A phase that goes on after a shorter gap counts as one: an engine between two turns.
MAX_GAP_SECONDS = 0.05


def seconds_by_phase(spans: Iterable[Span]) -> dict[str, dict[str, float]]:
    """How long the parts of a kind were busy with each phase, the mean over them.

    Args:
        spans: Of one iteration, or of several.

    Returns:
        ``{"learner": {"old logits": 1.5}}``, in seconds.
    """
    lanes: dict[str, set[str]] = defaultdict(set)
    seconds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for lane, phase, start, end in spans:
        kind = lane.split()[0]
        lanes[kind].add(lane)
        seconds[kind][phase] += end - start
    return {
        kind: {phase: total / len(lanes[kind]) for phase, total in phases.items()}
        for kind, phases in seconds.items()
    }


def logged_spans(value: Any) -> list[Span]:
    """What `Timeline.log_to` logged, from the compiled results.

    RLlib hands a series of one item out as the bare item.
    """
    if not value:
        return []
    return [value] if isinstance(value[0], str) else list(value)


class Timeline:
    """Records the phases of one part of a run; any thread may call it.

    Args:
        lane: Name of the part.
    """

    def __init__(self, lane: str) -> None:
        self._lane = lane
        self._began: dict[str, float] = {}
        self._spans: list[Span] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records the body of a ``with`` statement."""
        self.begin(name)
        try:
            yield
        finally:
            self.end(name)

    def begin(self, name: str) -> None:
        """Begins a phase; phases of different names may overlap."""
        with self._lock:
            start = time.time()
            last = self._spans[-1] if self._spans else None
            if last and last[1] == name and start - last[3] < MAX_GAP_SECONDS:
                start = last[2]
                self._spans.pop()
            self._began[name] = start

    def end(self, name: str) -> None:
        """Ends a phase; does nothing if it has not begun."""
        with self._lock:
            if name in self._began:
                start = self._began.pop(name)
                self._spans.append((self._lane, name, start, time.time()))

    def take(self) -> list[Span]:
        """What happened since the last call; phases under way are cut in two."""
        with self._lock:
            now = time.time()
            under_way = [(self._lane, n, t, now) for n, t in self._began.items()]
            spans = self._spans + under_way
            self._began = dict.fromkeys(self._began, now)
            self._spans = []
            return spans

    def log_to(self, metrics: MetricsLogger, *key: str) -> None:
        """Logs what `take` returns; spans of several actors add up under one key."""
        for span in self.take():
            metrics.log_value((*key, result_keys.TIMELINE), span, reduce="item_series")
