"""An engine that dies or hangs under the real loop: replaced, counted, survived."""

import os
import signal
import time

import pytest

pytestmark = pytest.mark.slow


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        (signal.SIGKILL, {}),
        (signal.SIGSTOP, {}),
        # The other engine knows none of the versions' adapters.
        (signal.SIGKILL, {"lora": LORA, "lora_sync": "adapter"}),
        (signal.SIGKILL, {"lora": LORA, "lora_sync": "per_version"}),
    ],
)
def test_training_goes_on_with_another_engine(
    ray_cluster, make_config, learner_results, fault, settings
):
    config = make_config(
        old_logprob_source="snapshot_old",
        max_staleness=2,
        engine_timeout_s=10.0,
        **settings,
    )
    algorithm = config.build_algo()
    try:
        for _ in range(2):
            result = algorithm.train()
        assert result["env_runners"]["num_engine_failures"] == 0
        ((core,),) = algorithm.env_runner_group.foreach_env_runner(
            lambda runner: [process.pid for process in runner.engine._processes],
            local_env_runner=False,
        )
        os.kill(core, fault)
        before = learner_results(result)["policy_version"]
        began = time.monotonic()
        updates = []
        restarts = 0
        while restarts == 0 and time.monotonic() < began + 300:
            result = algorithm.train()
            updates.append(time.monotonic() - began)
            restarts = result["fault_tolerance"]["num_remote_worker_restarts"]
        assert restarts == 1
        print(
            f"\nengine, {fault.name}: next update after {updates[0]:.1f} s, replaced "
            f"after {updates[-1]:.1f} s"
        )
        for _ in range(3):
            result = algorithm.train()
        assert result["env_runners"]["num_engine_failures"] == 1
        assert result["ledger/identity_error"] == 0
        # The other engine serves the versions that its tokens say.
        assert learner_results(result)["discrepancy_log_ratio_abs_mean"] < 1e-4
        assert learner_results(result)["policy_version"] > before + 2
        assert not os.path.exists(f"/proc/{core}")
    finally:
        algorithm.stop()


def test_an_engine_that_dies_at_every_start_ends_the_run(ray_cluster, make_config):
    """Instead of a hundred starts of half a minute each."""
    config = make_config().callbacks(on_episode_start=kill_engine)
    algorithm = config.build_algo()
    try:
        with pytest.raises(RuntimeError, match=r"died 5 times .*EngineDiedError"):
            algorithm.train()
    finally:
        algorithm.stop()


def kill_engine(env_runner, **_):
    for process in env_runner.engine._processes:
        process.kill()
