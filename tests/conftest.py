"""Which tests are live, and what they share: one Ray cluster, a small mixture."""

import gc
import multiprocessing
import os
import sys
import time

import pytest
from hypothesis import settings

# Before torch is imported: on the tiny tensors of the tests a second thread costs more
# than it brings, and beside engines and actors a multiple.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DEDUP_LOGS", "1")

# pytest --hypothesis-profile=thorough, as `make test-slow` does
settings.register_profile("thorough", max_examples=1000, deadline=None)

#: What starts a cluster or an engine does so behind one of these, or is in end_to_end.
LIVE_FIXTURES = {"ray_cluster", "own_cluster", "real_engines"}


def _is_live(item):
    return item.get_closest_marker("live") is not None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """Marks tests, and puts live ones last, clusters of their own behind all else."""
    for item in items:
        if LIVE_FIXTURES & {*item.fixturenames} or "end_to_end" in item.path.parts:
            item.add_marker("live")
        if "algorithms" in item.path.parts:  # they build learners
            item.add_marker("thorough")
    items.sort(key=lambda item: (_is_live(item), "own_cluster" in item.fixturenames))


def _has_cluster():
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(autouse=True)
def nothing_live_unawares(request):
    """Ray starts a cluster for whoever forgot to, and `make test-fast` is slow."""
    before = _has_cluster()
    yield
    assert _is_live(request.node) or _has_cluster() == before


def _stop_cluster():
    import ray
    from ray.tune.registry import register_trainable

    from rllib_llm_async import algorithms

    ray.shutdown()
    # Tune forgets what was registered with the cluster.
    for cls in (algorithms.AsyncDecoupledPPO, algorithms.PPOEWMAAsync):
        register_trainable(cls.__name__, cls)


def _named_actors():
    """All but those that Ray keeps for itself once they were needed."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return [actor for actor in named if actor["name"] != "AutoscalingCoordinator"]


def _is_idle(patience_seconds=10.0):
    """Whether a module's actors are gone from the cluster, soon."""
    import ray

    # Actors end with their last handle, which a cycle of exceptions may hold.
    gc.collect()
    deadline = time.monotonic() + patience_seconds
    while _named_actors() or (
        ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]
    ):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture(scope="session")
def _last_cluster_stops():
    yield
    if _has_cluster():
        _stop_cluster()


@pytest.fixture(scope="module")
def ray_cluster(_last_cluster_stops):
    """A local cluster with more logical CPUs than a small machine has cores.

    One for all modules; the next one gets another if this one left actors behind.
    """
    import ray

    if not ray.is_initialized():
        ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    if not (_has_cluster() and _is_idle()):
        _stop_cluster()


@pytest.fixture
def own_cluster(_last_cluster_stops):
    """For a test that starts a cluster itself, to kill parts of it."""
    _stop_cluster()
    yield
    _stop_cluster()


@pytest.fixture
def nodes(own_cluster):
    """A cluster of one CPU, to which a test adds nodes; they all are this machine."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def real_engines():
    """For tests that start engines in this process: none may be left afterwards."""
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture(scope="session")
def small_moe_dir(tmp_path_factory):
    """The bundled agent as a Qwen3-MoE of 4 experts, 2 active: it still plays."""
    from experiments.mixture import write_mixture

    directory = tmp_path_factory.mktemp("small_moe")
    write_mixture(directory, noise=0.3)
    return directory
