"""The folder that an experiment's results go to."""

from __future__ import annotations

import os
from pathlib import Path

from rllib_llm_async.cli.errors import InputError


def check_storage(storage_path: str, name: str) -> None:
    """Results go to a folder of the experiment's name, which can be made, or is there.

    Raises:
        InputError: If it cannot be.
    """
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise InputError(
            f"{name!r}: an experiment's name is that of its folder in --storage-path; "
            "leave out slashes and dots that lead elsewhere"
        )
    if not name.isprintable() or name != name.strip() or len(name.encode()) > 200:
        raise InputError(
            f"{name!r}: an experiment's name is that of its folder; at most 200 "
            "printable characters, no space at its ends"
        )
    if not storage_path.strip() or "\0" in storage_path or "://" in storage_path:
        raise InputError(
            f"--storage-path {storage_path!r}: must be a folder; one that several "
            "machines share is mounted"
        )
    path = Path(os.path.abspath(storage_path), name)
    try:
        nearest = next(f for f in (path, *path.parents) if f.exists())
    except OSError as error:  # longer than a name may be
        raise InputError(f"--storage-path {storage_path}: {error.strerror}") from None
    if not nearest.is_dir():
        raise InputError(f"--storage-path {storage_path}: {nearest} is a file")
    if not os.access(nearest, os.W_OK) or nearest.is_relative_to("/proc"):
        raise InputError(
            f"--storage-path {storage_path}: nothing can be written to {nearest}"
        )


def has_begun(storage_path: str, name: str) -> bool:
    """Whether a run of that name has left its state; needs no Ray."""
    path = Path(os.path.abspath(storage_path), name)
    # The state follows some time after the rest: without it, no trial has begun.
    return any(path.glob("experiment_state-*.json"))


def can_resume(storage_path: str, name: str) -> bool:
    """Whether Tune has written down a run of that name."""
    from ray import tune

    path = os.path.join(os.path.abspath(storage_path), name)
    return has_begun(storage_path, name) and tune.Tuner.can_restore(path)
