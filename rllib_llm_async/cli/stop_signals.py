"""The signals that stop `rllib train`; each is answered at once, in one line.

What they lead to is in `interruption`. Nothing here imports Ray, which takes seconds in
which somebody may change their mind.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: By Ctrl-C; by a scheduler that takes the machine back; by SLURM's `--signal`.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Notes the first signal while trials run; any other ends the command."""

    def __init__(self) -> None:
        #: The signal that stops the run.
        self.received: signal.Signals | None = None
        #: Whether somebody acts on it: otherwise there is nothing to save.
        self.awaited = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals inside; in a thread, where none arrive, does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.getsignal(number) for number in SIGNALS]
        self.install()
        try:
            yield
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def install(self) -> None:
        """Again, for Tune and Ray put handlers of their own in place."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self.received is not None or not self.awaited:
            _acknowledge(f"{name}: ending now")
            raise SystemExit(128 + number)
        self.received = signal.Signals(number)
        _acknowledge(
            f"{name}: stopping, with a checkpoint of what has been learned; again to "
            "end at once"
        )


def _acknowledge(text: str) -> None:
    """Writes a line from within a signal's handler, where `print` may be under way."""
    # A terminal has shown ^C and stands behind it.
    start = "\r\n" if os.isatty(2) else ""
    os.write(2, f"{start}{text}\n".encode())
