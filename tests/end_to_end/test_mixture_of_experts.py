"""The real loop on a mixture of experts: every version arrives, and is scored."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def test_trains_a_mixture_of_experts(
    ray_cluster, make_config, learner_results, check_versions, small_moe_dir
):
    config = make_config(
        model=str(small_moe_dir),
        old_logprob_source="snapshot_old",
        compare_sources=["old_logit_model"],
        old_logit_model={"num_cpus": 0.5},
        max_staleness=2,
    )
    algorithm = config.build_algo()

    def weights(learner):
        return {n: w.numpy() for n, w in learner._policy.inference_weights()}

    try:
        (before,) = (r.get() for r in algorithm.learner_group.foreach_learner(weights))
        before = {name: weight.copy() for name, weight in before.items()}
        iterations = [algorithm.train() for _ in range(3)]
        results = [learner_results(iteration) for iteration in iterations]
        check_versions(results)
        assert results[-1]["staleness_max"] > 0
        assert all(result["router_replay_share"] == 1 for result in results)
        # Engine and trainer route each token alike: only float32 noise is left.
        assert results[-1]["discrepancy_log_ratio_abs_mean"] < 1e-4
        # The actor that scores replays the experts, too.
        assert results[-1]["compare/old_logit_model/log_ratio_abs_error_mean"] < 1e-5
        (after,) = (r.get() for r in algorithm.learner_group.foreach_learner(weights))
        for part in ("gate.weight", "experts.0.up_proj.weight", "q_proj.weight"):
            changes = [
                np.abs(after[name] - before[name]).max()
                for name in after
                if name.endswith(part)
            ]
            assert min(changes) > 0, part
        arrivals = iterations[-1]["env_runners"]
        assert arrivals["weight_probe_error"] < 1e-4
        assert arrivals["num_weight_mismatches"] == 0
    finally:
        algorithm.stop()
