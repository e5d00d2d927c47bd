"""What a trial's actors need against what there is."""

import pytest

from rllib_llm_async import AsyncDecoupledPPO, AsyncDecoupledPPOConfig
from rllib_llm_async.cli import run_experiment
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.experiment_file import Experiment
from rllib_llm_async.cli.resources import check_resources, trials_beside_served_models
from rllib_llm_async.cli.run_options import RunOptions
from rllib_llm_async.cli.stop_signals import StopSignals

USER = {"served_model": "small_agent", "num_gpus": 1, "num_replicas": 2}


def config(**env_config):
    return (
        AsyncDecoupledPPOConfig()
        .environment("tau2", env_config=env_config)
        .env_runners(num_env_runners=2, num_gpus_per_env_runner=1)
        .learners(num_learners=2, num_gpus_per_learner=1)
    )


def test_served_users_need_gpus_beside_the_trial():
    available = {"CPU": 64, "GPU": 4}
    check_resources(config(domains=["retail"]), available, "the cluster")
    with pytest.raises(InputError, match=r"2 served users x 1 = 6 GPUs") as error:
        check_resources(config(user=USER), available, "the cluster")
    assert "env_config.user.num_replicas" in str(error.value)


def test_user_and_judge_with_equal_settings_are_the_same_replicas():
    check_resources(config(user=USER, judge=dict(USER)), {"GPU": 6}, "the cluster")
    with pytest.raises(InputError, match="= 8 GPUs"):
        judge = {**USER, "temperature": 0.0}
        check_resources(config(user=USER, judge=judge), {"GPU": 6}, "the cluster")


@pytest.mark.parametrize(
    "available, limit",
    [
        ({"CPU": 64, "GPU": 6}, 1),
        ({"CPU": 64, "GPU": 9}, 1),
        ({"CPU": 64, "GPU": 10}, 2),
        ({"CPU": 12, "GPU": 100}, 2),
    ],
)
def test_trials_leave_room_for_the_users_that_they_ask(available, limit):
    # 4 GPUs and 3 CPUs are a trial's, 2 and 4 the users'.
    own = config(user={**USER, "num_cpus": 2})
    assert trials_beside_served_models(own, available) == limit
    assert trials_beside_served_models(config(), available) is None


def test_a_sweep_runs_no_more_trials_than_leave_room_for_users(monkeypatch, tmp_path):
    tuned = []
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 10.0})
    monkeypatch.setattr("ray.tune.Tuner", lambda *args, **kwargs: tuned.append(kwargs))
    # tau2-bench, of whose users this is, need not be installed.
    monkeypatch.setattr(run_experiment, "build_config", lambda _: config(user=USER))

    def limit(**sampled):
        own = Experiment("sweep", "PPOEWMAAsync", "mini_tau2", **sampled)
        options = RunOptions(str(tmp_path), 0, 1, None)
        run_experiment._make_tuner(own, tmp_path, options, StopSignals(), None)
        return tuned[-1]["tune_config"].max_concurrent_trials

    assert limit(num_samples=8) == 2
    assert limit(config={"eps_ti": {"grid_search": [1.05, 1.2, 1.5]}}) == 2
    assert limit() is None


@pytest.mark.parametrize(
    "actors, reserved",
    [
        ({}, [{"CPU": 1.0}]),
        ({"num_actors": 2, "num_cpus": 0, "num_gpus": 0.5}, [{"GPU": 0.5}] * 2),
        ({"num_cpus": 0}, []),
    ],
)
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("main_cpus", [0, 1])
def test_a_trial_reserves_a_place_for_each_of_its_old_logit_actors(
    actors, reserved, compared, main_cpus
):
    def bundles(**settings):
        request = AsyncDecoupledPPO.default_resource_request(
            AsyncDecoupledPPOConfig()
            .environment("mini_tau2")
            .training(model="small_agent", **settings)
            .learners(num_learners=1)
            .resources(num_cpus_for_main_process=main_cpus)
        )
        assert request.head_cpus == main_cpus
        return request.bundles

    source = "old_logit_model"
    chosen = (
        {"compare_sources": [source]} if compared else {"old_logprob_source": source}
    )
    assert bundles(old_logit_model=actors, **chosen) == bundles() + reserved
