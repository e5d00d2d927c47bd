"""The exact routes agree on a live asynchronous run, and outlive their actors."""

import time

import pytest
import ray

pytestmark = pytest.mark.slow


def test_old_logit_model_equals_snapshots_and_survives_its_death(
    ray_cluster, make_config, learner_results, check_versions
):
    config = make_config(
        old_logprob_source="old_logit_model",
        compare_sources=["snapshot_old", "current_recompute", "interp_prox_loglinear"],
        old_logit_model={"num_actors": 1, "num_cpus": 0.5},
        num_concurrent_episodes=48,
        max_staleness=3,
        lr=1e-3,
    ).environment(
        # Users who take their time: some episodes are under way at every update.
        env_config={"domains": ["airline"], "user_seconds": 0.3},
    )
    algorithm = config.build_algo()
    try:
        results = []
        for iteration in range(8):
            began = time.monotonic()
            results.append(learner_results(algorithm.train()))
            if iteration == 4:
                print(f"\nold-logit actor: {time.monotonic() - began:.1f} s")
            if iteration == 3:
                (actor,) = algorithm._coordination.old_logit_pool._actors
                ray.kill(actor, no_restart=False)
        for result in results:
            # Both under each token's own weights, packed and sliced differently.
            assert result["compare/snapshot_old/log_ratio_abs_error_mean"] < 1e-5
            assert result["compare/snapshot_old/mask_disagreement"] == 0
            assert result["compare_seconds"] > 0
        stale = [r for r in results if r["staleness_mean"] > 0]
        assert len(stale) >= 4
        assert all(
            r["compare/current_recompute/log_ratio_abs_error_mean"] > 1e-5
            for r in stale
        )
        check_versions(results)
    finally:
        algorithm.stop()


def test_exact_routes_agree_on_adapters_and_interrupt_sync_reports_its_pause(
    ray_cluster, make_config, learner_results, check_versions
):
    config = make_config(
        old_logprob_source="interrupt_sync",
        compare_sources=["snapshot_old", "old_logit_model"],
        old_logit_model={"num_cpus": 0.5},
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        # More than an update takes: some are always under way when it comes.
        num_concurrent_episodes=48,
        max_staleness=3,
        lr=1e-3,
    ).environment(
        # ... however fast the engine: users who take their time to answer.
        env_config={"domains": ["airline"], "user_seconds": 0.3},
    )
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(6)]
        learners = [learner_results(result) for result in results]
        for learner in learners:
            for name in ("snapshot_old", "old_logit_model"):
                assert learner[f"compare/{name}/log_ratio_abs_error_mean"] < 1e-5
            assert learner["num_episodes_dropped_unscored"] == 0
            # Nothing stops for an update that publishes nothing.
            assert (learner["interruption_seconds"] > 0) == learner["had_signal"]
        check_versions(learners)
        assert learners[-1]["staleness_mean"] > 0
        runners = results[-1]["env_runners"]
        # Turns that an interruption cut in two go on under the next version.
        assert runners["num_multi_version_episodes_lifetime"] > 0
        assert runners["generation_paused_fraction"] > 0
    finally:
        algorithm.stop()
