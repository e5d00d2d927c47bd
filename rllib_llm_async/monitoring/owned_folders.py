"""Temporary folders that are removed even when their process was killed.

A process holds a lock on each of its folders for as long as it lives; the kernel lets
go of it whatever ends the process. Whoever makes the next folder, or starts or ends a
run, removes those that nobody holds any more. A lock, not a process id: ids are used
again, and mean nothing to a container that shares the folder's disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

#: Where shared memory is, on Linux.
SHARED_MEMORY = Path("/dev/shm")
#: Names of folders that are locked; the process id is for people who look.
_NAME = re.compile(r"rllib_llm_async_[a-z]+_pid\d+_")


class OwnedFolder:
    """A temporary folder of this process; also a context manager that yields its path.

    Args:
        kind: What is in it, a word of small letters.
        parent: `SHARED_MEMORY` or `ray_directory()`; the machine's temporary directory
            in place of None and of what does not exist.
    """

    def __init__(self, kind: str, parent: Path | None = None) -> None:
        remove_abandoned_folders()
        if parent is not None and not parent.is_dir():
            parent = None
        made = Path(tempfile.mkdtemp(dir=parent))
        # Only then does it get the name by which others would remove it.
        lock = _lock(made)
        prefix = f"rllib_llm_async_{kind}_pid{os.getpid()}_"
        path = made.rename(made.with_name(prefix + made.name))
        #: Where it is.
        self.name = str(path)
        self._finalizer = weakref.finalize(self, _remove, path, lock)

    def cleanup(self) -> None:
        """Removes the folder; a second time does nothing."""
        self._finalizer()

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *exception: Any) -> None:
        self.cleanup()


def ray_directory() -> Path:
    """Where a user wants Ray's temporary files."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def remove_abandoned_folders() -> list[Path]:
    """Removes the folders of processes that are gone; returns which."""
    removed = []
    for parent in {SHARED_MEMORY, ray_directory(), Path(tempfile.gettempdir())}:
        with contextlib.suppress(OSError):
            removed += [path for path in parent.iterdir() if _remove_abandoned(path)]
    return removed


def _remove_abandoned(path: Path) -> bool:
    if not _NAME.match(path.name) or path.is_symlink():
        return False
    # What cannot be opened is another user's, or somebody else is removing it.
    with contextlib.suppress(OSError):
        lock = _lock(path)
        if lock is not None:
            _remove(path, lock)
            return True
    return False


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _lock(path: Path) -> int | None:
    """Takes the lock of a folder, as an open file; None if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
