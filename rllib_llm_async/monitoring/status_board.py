"""What each trial of a run is doing right now, for whoever shows it.

A trial's actor is busy inside `train()` for most of the time and cannot be asked. So
it writes down what it has begun, and `rllib train` reads that.
"""

from __future__ import annotations

import time

import ray
from ray.actor import ActorHandle

_NAME = "rllib_llm_async_status"


class StatusBoard:
    """Actor with one line per trial, by the name of its directory."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, float]] = {}

    def write(self, trial: str, text: str) -> None:
        """Replaces a trial's line; one that says the same keeps its time."""
        if self._lines.get(trial, ("", 0.0))[0] != text:
            self._lines[trial] = text, time.time()

    def read(self) -> dict[str, tuple[str, float]]:
        """Text by trial, and the seconds since the epoch at which it was written."""
        return dict(self._lines)


def start_status_board() -> ActorHandle:
    """Starts the board of this Ray job; it ends with its last handle."""
    return (
        ray.remote(StatusBoard)
        .options(name=_NAME, get_if_exists=True, num_cpus=0)
        .remote()
    )


def find_status_board() -> ActorHandle | None:
    """The board that the command started, None where nobody wants to know."""
    try:
        return ray.get_actor(_NAME)
    except ValueError:
        return None
