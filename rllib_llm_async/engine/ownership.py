"""vLLM's processes end with the process that uses the engine, even if it is killed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import threading

#: Names, in vLLM's processes, the process that uses the engine.
OWNER = "RLLIB_LLM_ASYNC_ENGINE_OWNER"
#: Of prctl(2): the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


def end_with_owner() -> None:
    """Has this worker, and the engine process if that is another, end with the owner.

    Where the owner is the parent, the kernel sees to it, so that a process that hangs
    ends as well. What counts then is the owner's thread that started the process: the
    one whose asyncio loop the engine is used from.
    """
    owner, parent = int(os.environ[OWNER]), os.getppid()
    if parent == owner:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_end_after, args=(owner, parent), daemon=True).start()
    if os.getppid() != parent:  # which ended before this was set up
        os._exit(1)


def _end_after(owner: int, engine: int) -> None:
    """In one of several workers, whose parent is the engine process."""
    with contextlib.suppress(ProcessLookupError):
        select.select([os.pidfd_open(owner)], [], [])
    if os.getppid() == engine:
        os.kill(engine, signal.SIGKILL)
    os._exit(1)
