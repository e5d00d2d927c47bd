"""What takes objects and whole machines with it: a node that goes, a full store."""

import time

import pytest
import ray

pytestmark = pytest.mark.slow


def test_a_node_is_killed_with_the_runner_on_it(nodes, make_config, learner_results):
    """Groups that lay in its object store are counted as lost; the other trains on."""
    node = nodes.add_node(num_cpus=1)
    ray.init(nodes.address, log_to_driver=False)
    config = make_config(max_staleness=2)
    # Users who take their time: at any moment groups are under way.
    config.environment(env_config={"domains": ["airline"], "user_seconds": 0.5})
    config.env_runners(num_env_runners=2, num_cpus_per_env_runner=1)
    algorithm = config.build_algo()
    for _ in range(60):
        result = algorithm.train()
        if all(has_played(algorithm)):
            break
    else:
        pytest.fail(f"has played, by runner: {has_played(algorithm)}")
    before = learner_results(result)["policy_version"]
    nodes.remove_node(node, allow_graceful=False)
    began = time.monotonic()
    for update in range(5):
        result = algorithm.train()
        if update == 0:
            print(f"\nnode: next update after {time.monotonic() - began:.1f} s")
    assert learner_results(result)["policy_version"] > before + 2
    assert result["ledger/identity_error"] == 0
    assert result["ledger/episodes/dropped_lost"] > 0
    assert algorithm.env_runner_group.num_healthy_remote_workers() == 1


def has_played(algorithm):
    """Of each runner; one on another node waits for its weights to come."""
    return algorithm.env_runner_group.foreach_env_runner(
        lambda runner: runner.engine.num_generated_tokens > 0, local_env_runner=False
    )


def test_an_object_store_that_is_full_spills(
    own_cluster, make_config, learner_results, tmp_path
):
    ray.init(
        num_cpus=8,
        object_store_memory=80 << 20,
        object_spilling_directory=str(tmp_path),
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        algorithm = make_config(max_staleness=2).build_algo()
        kept = [ray.put(bytes(20 << 20)) for _ in range(6)]
        for _ in range(5):
            result = algorithm.train()
        assert learner_results(result)["policy_version"] >= 2
        assert result["ledger/identity_error"] == 0
        assert any(path.is_file() for path in tmp_path.rglob("*"))
        assert len(ray.get(kept[0])) == 20 << 20
        algorithm.stop()
    finally:
        ray.shutdown()
