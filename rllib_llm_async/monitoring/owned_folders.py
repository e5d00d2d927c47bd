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
import time
import weakref
from pathlib import Path
from typing import Any

#: Where shared memory is, on Linux.
SHARED_MEMORY = Path("/dev/shm")
#: Names of folders that are locked; the process id is for people who look.
_NAME = re.compile(r"rllib_llm_async_[a-z]+_(pid\d+|shared)_")


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


class SharedFolder:
    """A temporary folder of all processes of this machine that ask for its name.

    It is there for as long as one of them lives and has not given it up.

    Args:
        kind: As of `OwnedFolder`.
        key: With the kind, its name.
        parent: As of `OwnedFolder`.
    """

    def __init__(self, kind: str, key: str, parent: Path) -> None:
        remove_abandoned_folders()
        if not parent.is_dir():
            parent = Path(tempfile.gettempdir())
        path = parent / f"rllib_llm_async_{kind}_shared_{key}"
        while (lock := _join(path)) is None:
            time.sleep(0.01)  # somebody removes it just now
        #: Where it is.
        self.name = str(path)
        self._finalizer = weakref.finalize(self, _give_up, path, lock)

    def cleanup(self) -> None:
        """Gives the folder up; a second time does nothing."""
        self._finalizer()


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


def _join(path: Path) -> int | None:
    """Takes part in the lock of a shared folder; None if it has to be tried again."""
    path.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        lock = _lock(path, fcntl.LOCK_SH)
        if lock is not None and is_at(lock, path):
            return lock
        if lock is not None:
            os.close(lock)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder is still what has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _give_up(path: Path, lock: int) -> None:
    os.close(lock)
    with contextlib.suppress(OSError):
        _remove_abandoned(path)


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


def _lock(path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Takes the lock of a folder, as an open file; None if another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
