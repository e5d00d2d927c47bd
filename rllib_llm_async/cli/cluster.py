"""Starting Ray for a command, and leaving nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.reaper import reaper
from rllib_llm_async.monitoring.owned_folders import (
    OwnedFolder,
    ray_directory,
    remove_abandoned_folders,
)


def num_logical_cpus() -> int:
    """CPUs that Ray counts on this machine when a command starts it.

    At least 8: the actors of a run share the cores of a small machine, and Ray would
    otherwise wait for cores that nobody lacks.
    """
    return max(os.cpu_count() or 1, 8)


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """A Ray cluster on this machine (loopback only), or a running one by address."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    # Else the stack of an iteration that a signal has ended, for which nobody waits.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Ray's head keeps a record of every call, by default of the last 100,000: some
    # hundred megabytes that grow for hours, for a dashboard that is not there.
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", "1000")
    # It keeps logs open of processes that are gone, by default two hundred.
    os.environ.setdefault("RAY_LOG_MONITOR_MAX_OPEN_FILES", "50")
    import ray

    with reaper(), OwnedFolder("objects", ray_directory()) as spilled_objects:
        if address:
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"--address {address}: no Ray cluster answers there ({error})"
                ) from error
        else:
            with _loopback_is_taken_at_its_word():
                ray.init(
                    num_cpus=num_logical_cpus(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_spilling_directory=spilled_objects,
                    _node_ip_address="127.0.0.1",
                )
        try:
            yield
        finally:
            ray.shutdown()
            remove_abandoned_folders()


@contextmanager
def _loopback_is_taken_at_its_word() -> Iterator[None]:
    """Lets Ray listen on 127.0.0.1, in whose place it puts the machine's own address.

    All of its servers would then listen on every network, where whoever reaches them
    can run code.
    """
    name = "ray._private.services.resolve_ip_for_localhost"
    with patch(name, lambda host: host):
        yield
