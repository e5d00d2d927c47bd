"""What is unpickled must be one's own: unpickling runs what the file says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rllib_llm_async.cli.errors import InputError


def check_own(directory: Path) -> None:
    """Checks that nobody else can have written what a directory holds.

    Raises:
        InputError: For a folder or file below it that belongs to neither this user nor
            root, or that all users may write.
    """
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        # All may write a link, which says nothing of what it leads to.
        writable = status.st_mode & stat.S_IWOTH and not path.is_symlink()
        if writable or status.st_uid not in (os.geteuid(), 0):
            raise InputError(
                f"{path}: {'all users may write it' if writable else 'not your own'}; "
                "--resume runs what its files say, so make sure of them, then "
                f"`chown -R $USER` and `chmod -R o-w` {directory}"
            )
