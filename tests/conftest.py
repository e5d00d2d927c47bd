"""Fixtures shared by the tests that start a real Ray cluster."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DEDUP_LOGS", "1")

# pytest --hypothesis-profile=thorough
settings.register_profile("thorough", max_examples=1000, deadline=None)


@pytest.fixture(scope="module")
def ray_cluster():
    """A local cluster with more logical CPUs than a small machine has cores."""
    import ray

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
