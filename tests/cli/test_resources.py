"""What a trial's actors need against what there is."""

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.resources import check_resources

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
