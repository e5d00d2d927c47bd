"""What each trial of a run is doing right now, and what the run wants of it.

A trial's actor is busy inside `train()` for most of the time and cannot be asked. So
it writes down what it has begun, `rllib train` reads that, and trials look here for
what they should do before an iteration has ended.
"""

from __future__ import annotations

import time
from enum import Enum

import ray
from ray.actor import ActorHandle

_NAME = "rllib_llm_async_status"


class Wish(Enum):
    """What a command that is being stopped wants of its trials."""

    #: A checkpoint of what has been learned.
    SAVE = "save"
    #: Nothing more: the result of this iteration goes nowhere.
    END = "end"


class StatusBoard:
    """Actor with one line per trial, by the name of its directory."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, float]] = {}
        self._notices: list[tuple[str, str]] = []
        self._wish: Wish | None = None
        self._fulfilled: set[str] = set()

    def write(self, trial: str, text: str) -> None:
        """Replaces a trial's line; one that says the same keeps its time."""
        if self._lines.get(trial, ("", 0.0))[0] != text:
            self._lines[trial] = text, time.time()

    def read(self) -> dict[str, tuple[str, float]]:
        """Text by trial, and the seconds since the epoch at which it was written."""
        return dict(self._lines)

    def notify(self, trial: str, text: str) -> None:
        """Leaves a text that is shown once and stays."""
        self._notices.append((trial, text))

    def take_notices(self) -> list[tuple[str, str]]:
        """Trial and text of what was left since the last call."""
        taken, self._notices = self._notices, []
        return taken

    def want(self, wish: Wish) -> None:
        """Wants something of every trial."""
        self._wish = wish
        self._fulfilled.clear()

    def wish(self, trial: str) -> Wish | None:
        """What is wanted of a trial that it has not done yet."""
        return None if trial in self._fulfilled else self._wish

    def fulfil(self, trial: str) -> None:
        """Says that a trial has done what was wanted."""
        self._fulfilled.add(trial)

    def fulfilled(self) -> set[str]:
        """Trials that have done what was wanted last."""
        return set(self._fulfilled)


def start_status_board() -> ActorHandle:
    """Starts the board of this Ray job; it ends with its last handle.

    Ray gives every command a namespace of its own, so that others on the same cluster
    do not find it.
    """
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
