"""Starting Ray for a command, and leaving nothing behind."""

from __future__ import annotations

import os
from contextlib import contextmanager


@contextmanager
def ray_cluster(address: str | None = None):
    """A Ray cluster on this machine (loopback only), or a running one by address.

    Logical CPUs are at least 8: the actors of a run share the cores of a small
    machine, and Ray would otherwise wait for cores that nobody lacks.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, 8),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()
