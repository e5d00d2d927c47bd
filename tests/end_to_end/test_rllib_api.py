"""What users of RLlib expect of any algorithm: Tuner, callbacks, LoRA by a setting."""

import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_llm_async import PPOEWMAAsync, PPOEWMAAsyncConfig

pytestmark = pytest.mark.slow


class CountTurns(RLlibCallback):
    def on_episode_end(self, *, episode, metrics_logger, **kwargs):
        metrics_logger.log_value("turns", len(episode), reduce="lifetime_sum")

    def on_train_result(self, *, result, **kwargs):
        result["seen_by_callback"] = True


def test_tuner_sweeps_with_callbacks_and_lora(ray_cluster, make_config, tmp_path):
    config = make_config(
        PPOEWMAAsyncConfig,
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        eps_ti=tune.grid_search([1.05, 1.5]),
        max_staleness=1,
    ).callbacks(CountTurns)
    results = tune.Tuner(
        PPOEWMAAsync,
        param_space=config,
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), stop={"training_iteration": 3}, verbose=0
        ),
    ).fit()
    assert not results.errors
    assert len(results) == 2
    assert {r.config["eps_ti"] for r in results} == {1.05, 1.5}
    for result in results:
        metrics = result.metrics
        assert metrics["seen_by_callback"]
        runners = metrics["env_runners"]
        # The callback is called where episodes end, which is ahead of what is taken
        # over; its figures may come an update later.
        steps = result.metrics_dataframe["env_runners/num_env_steps_sampled_lifetime"]
        assert runners["turns"] >= steps.iloc[0] > 0
        # An update without signal publishes nothing.
        assert 1 <= metrics["learners"]["default_policy"]["policy_version"] <= 2
