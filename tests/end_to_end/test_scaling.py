"""Several env runners and several learners."""

import numpy as np
import pytest
import ray

pytestmark = pytest.mark.slow


def test_two_runners_and_two_learners(
    ray_cluster, make_config, learner_results, check_versions
):
    config = (
        make_config(
            old_logprob_source="snapshot_old",
            compare_sources=["interrupt_sync", "old_logit_model"],
            old_logit_model={"num_cpus": 0.5},
            max_staleness=2,
        )
        .env_runners(num_env_runners=2)
        .learners(num_learners=2)
    )
    algorithm = config.build_algo()
    try:
        results = [learner_results(algorithm.train()) for _ in range(4)]
        check_versions(results)
        # Exact old log-probabilities on both learners: only float32 noise is left,
        # which could not be if their weights or versions had come apart.
        assert results[-1]["discrepancy_log_ratio_abs_mean"] < 1e-4
        assert results[-1]["staleness_max"] > 0
        for result in results:
            for name in ("interrupt_sync", "old_logit_model"):
                assert result[f"compare/{name}/log_ratio_abs_error_mean"] < 1e-5

        def weights(learner):
            return learner._version, {
                name: tensor.cpu().numpy()
                for name, tensor in learner._policy.inference_weights()
            }

        one, two = (r.get() for r in algorithm.learner_group.foreach_learner(weights))
        version = results[-1]["policy_version"] + results[-1]["had_signal"]
        assert one[0] == two[0] == version
        for name, tensor in one[1].items():
            np.testing.assert_array_equal(tensor, two[1][name])

        # Both runners deliver, and evaluate their share of the tasks.
        tokens = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: runner.engine.num_generated_tokens, local_env_runner=False
        )
        assert len(tokens) == 2 and min(tokens) > 0
        summary = algorithm.evaluate_tasks(num_trials=1, num_tasks=9)
        assert summary["domains"]["airline"]["num_episodes"] == 9

        # What a runner that never comes back had under way is given up and counted;
        # the other one carries on.
        first, second = algorithm._env_runner_actors()
        ray.kill(first, no_restart=True)
        for _ in range(4):
            result = algorithm.train()
        assert learner_results(result)["policy_version"] > version
        assert result["env_runners"]["num_episodes_dropped_lost"] > 0

        ray.kill(second, no_restart=True)
        with pytest.raises(RuntimeError, match="all 2 env runners have died"):
            for _ in range(4):
                algorithm.train()
    finally:
        algorithm.stop()


def test_a_runner_with_two_engines(ray_cluster, make_config, learner_results):
    algorithm = make_config(
        old_logprob_source="snapshot_old", max_staleness=1, num_engines_per_env_runner=2
    ).build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
        (engines,) = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: [
                (engine.version, engine.num_generated_tokens)
                for engine in runner.engine.each
            ],
            local_env_runner=False,
        )
        assert len(engines) == 2
        assert all(version > 0 and tokens > 0 for version, tokens in engines)
        # Tokens of either engine are exactly of the version that they say.
        last = learner_results(results[-1])
        assert last["discrepancy_log_ratio_abs_mean"] < 1e-4
        assert results[-1]["env_runners"]["num_weight_mismatches"] == 0
    finally:
        algorithm.stop()
