"""Ends what a killed command leaves: a process of its own that outlives it.

Ray's agents and vLLM's engine cores do not notice that the command is gone after
`kill -9`. The command holds one end of a pipe for as long as it lives. When that
closes without a word, this process ends every process that has the run's mark in its
environment, which children inherit, and removes the folders they had.

Run as a file, with the standard library alone: importing the package takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

#: Environment variable that marks the processes of a run.
MARK = "RLLIB_LLM_ASYNC_RUN"
#: After so long without any, no process of a run is left or about to be started.
_QUIET_SECONDS = 2.0


@contextmanager
def reaper() -> Iterator[None]:
    """Has the processes that are started inside ended if this one is killed."""
    before = os.environ.get(MARK)
    os.environ[MARK] = uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-S", __file__, os.environ[MARK]],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # Whoever kills the command's group or its terminal must not reach it.
        start_new_session=True,
        env={k: v for k, v in os.environ.items() if k != MARK},
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it was killed itself
            process.communicate(b"ended in order")
        if before is None:
            del os.environ[MARK]
        else:
            os.environ[MARK] = before


def end_processes(mark: str) -> None:
    """Kills the processes of a run, and those that they start meanwhile."""
    last_seen = time.monotonic()
    while time.monotonic() - last_seen < _QUIET_SECONDS:
        for pid in find_processes(mark):
            last_seen = time.monotonic()
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def find_processes(mark: str) -> list[int]:
    """Ids of the processes that were started with a run's mark and still run."""
    entry = f"{MARK}={mark}".encode()
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # another user's, or just gone
            if entry in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return found


def _main(mark: str) -> None:
    if sys.stdin.buffer.read():
        return
    end_processes(mark)
    sys.path.insert(0, str(Path(__file__).parents[1] / "monitoring"))
    from owned_folders import remove_abandoned_folders

    remove_abandoned_folders()


if __name__ == "__main__":
    _main(sys.argv[1])
