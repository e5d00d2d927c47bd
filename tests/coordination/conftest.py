"""No test of this folder has a cluster, and none may start one unawares."""

import pytest
import ray


@pytest.fixture(autouse=True)
def without_a_cluster(monkeypatch):
    """What would go into the object store is its own reference."""
    monkeypatch.setattr(ray, "put", lambda value: value)
