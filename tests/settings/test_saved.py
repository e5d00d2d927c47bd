"""The settings in a checkpoint make the config again."""

import json

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig
from rllib_llm_async.cli.experiment_file import Experiment, build_config
from rllib_llm_async.settings.saved import saved_settings


@pytest.mark.parametrize("cls", [AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig])
def test_they_make_the_same_config_again(cls):
    config = (
        cls()
        .environment("mini_tau2", env_config={"domains": ("airline",)})
        .training(lr=[[0, 1e-3], [10, 0.0]], lora={"r": 4, "lora_alpha": 8})
        .env_runners(num_env_runners=2)
        .learners(num_learners=0)
        .debugging(seed=3)
    )
    said = json.loads(json.dumps(saved_settings(config)))
    assert said["not_saved"] == []
    again = build_config(
        Experiment("again", said["run"], said["env"], config=said["settings"])
    )
    assert type(again) is cls and saved_settings(again) == said
    assert again.lora == config.lora and again.seed == 3 and again.env == "mini_tau2"


def test_only_what_was_changed_is_saved_and_objects_are_named():
    config = AsyncDecoupledPPOConfig().environment("mini_tau2", env_config={"a": {1}})
    said = saved_settings(config.training(eps_ti=1.3))
    assert said["settings"] == {"eps_ti": 1.3} and said["not_saved"] == ["env_config"]
