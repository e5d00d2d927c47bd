"""A learner on one node, runners and engines on another, the driver on a third."""

import pytest
import ray

pytestmark = pytest.mark.slow


def test_learner_and_runners_on_different_nodes(nodes, make_config, learner_results):
    nodes.add_node(num_cpus=1, resources={"training": 1})
    nodes.add_node(num_cpus=2, resources={"sampling": 2})
    ray.init(nodes.address, log_to_driver=False)
    algorithm = (
        make_config(old_logprob_source="snapshot_old", max_staleness=1)
        .learners(num_learners=1, custom_resources_per_learner={"training": 1})
        .env_runners(
            num_env_runners=2,
            num_cpus_per_env_runner=1,
            custom_resources_per_env_runner={"sampling": 1},
        )
        .build_algo()
    )
    results = [algorithm.train() for _ in range(3)]

    def node_id(_):
        return ray.get_runtime_context().get_node_id()

    learner = [
        result.get() for result in algorithm.learner_group.foreach_learner(node_id)
    ]
    runners = algorithm.env_runner_group.foreach_env_runner(
        lambda runner: (
            node_id(runner),
            runner._weights._copy is not None,
            runner.engine.version,
            runner.engine.num_weight_mismatches,
        )
    )
    driver = ray.get_runtime_context().get_node_id()
    assert {node for node, *_ in runners}.isdisjoint({driver, *learner})
    assert driver not in learner and len({node for node, *_ in runners}) == 1
    # They brought the weights to their own node, and those are the learner's.
    assert all(copied and version > 0 for _, copied, version, _ in runners)
    assert not any(mismatches for *_, mismatches in runners)
    last = learner_results(results[-1])
    assert last["policy_version"] > 0
    assert last["discrepancy_log_ratio_abs_mean"] < 1e-4
    assert results[-1]["ledger/identity_error"] == 0
    algorithm.stop()
