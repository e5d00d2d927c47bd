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
    path = Path(os.path.abspath(storage_path), name)
    for folder in (path, *path.parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--storage-path {storage_path}: {folder} is a file")


def can_resume(storage_path: str, name: str) -> bool:
    """Whether Tune has written down a run of that name."""
    from ray import tune

    path = os.path.join(os.path.abspath(storage_path), name)
    # The state follows some time after the rest: without it, no trial has begun.
    return tune.Tuner.can_restore(path) and any(
        Path(path).glob("experiment_state-*.json")
    )
