"""The real loop on the bundled agent: real vLLM, RLlib and Ray."""

import os
import time

import ray


def test_synchronous_bound_gives_unit_ratios_on_the_first_pass(
    ray_cluster, make_config, learner_results, check_versions
):
    config = make_config(
        old_logprob_source="snapshot_old",
        max_staleness=0,
        minibatch_size=None,
        # Other runs here train all weights.
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    )
    algorithm = config.build_algo()
    try:
        iterations = [learner_results(algorithm.train()) for _ in range(2)]
        check_versions(iterations)
        for results in iterations:
            assert results["staleness_max"] == 0
            # One optimizer step: the loss sees pi_theta = pi_old for every token.
            assert results["staleness_log_ratio_abs_mean"] < 1e-6
            assert results["ppo_clip_fraction"] == 0
            # Engine and trainer differ by the numerics of float32 alone.
            assert results["discrepancy_log_ratio_abs_mean"] < 1e-4
            assert results["train_infer_mask"] == 1
    finally:
        algorithm.stop()


def test_async_run_checkpoint_and_a_killed_runner(
    ray_cluster, make_config, learner_results, check_versions, tmp_path
):
    config = make_config(
        old_logprob_source="snapshot_old",
        compare_sources=["old_logit_model"],
        old_logit_model={"num_cpus": 0.5},
        max_staleness=3,
        num_concurrent_episodes=48,
    ).environment(
        # Users who take their time: some episodes are under way at every update.
        env_config={"domains": ["airline"], "user_seconds": 0.3},
    )
    algorithm = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(4)]
        check_versions([learner_results(result) for result in results])
        learner = learner_results(results[-1])
        assert learner["staleness_mean"] > 0
        # Tokens of every lag are scored under their own version: only float32 noise.
        assert learner["discrepancy_log_ratio_abs_mean"] < 1e-4
        assert learner["compare/old_logit_model/log_ratio_abs_error_mean"] < 1e-5
        assert learner["snapshot_num_versions"] == learner["policy_version"] + 1
        assert learner["num_episodes_dropped_stale"] == 0
        runners = results[-1]["env_runners"]
        assert runners["num_multi_version_episodes_lifetime"] > 0
        assert runners["generation_paused_fraction"] < 0.1

        evaluation = algorithm.evaluate_tasks(num_trials=2, num_tasks=16)
        assert evaluation["domains"]["airline"]["num_episodes"] == 32
        assert evaluation["env_runners"]["success_rate"] > 0.2

        checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
        version = learner_results(algorithm.train())["policy_version"]
        algorithm.restore_from_path(checkpoint)
        assert learner_results(algorithm.train())["policy_version"] == version

        ((engine,),) = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: [process.pid for process in runner.engine._processes],
            local_env_runner=False,
        )
        (runner,) = algorithm._env_runner_actors()
        ray.kill(runner, no_restart=False)
        deadline = time.monotonic() + 120
        restarts = 0
        while restarts == 0 and time.monotonic() < deadline:
            result = algorithm.train()
            restarts = result["fault_tolerance"]["num_remote_worker_restarts"]
        assert restarts == 1
        assert not os.path.exists(f"/proc/{engine}")
        after = learner_results(algorithm.train())["policy_version"]
        assert after > version
    finally:
        algorithm.stop()
