"""What `rllib evaluate` makes of a run's settings, before it plays anything."""

from pathlib import Path

import pytest

from rllib_llm_async.cli.checkpoint import Checkpoint
from rllib_llm_async.cli.errors import InputError
from rllib_llm_async.cli.evaluate import A_YEAR, EVALUATION, _check_resources

#: Of a run on six GPUs.
RUN = {
    "model": "small_agent",
    "num_env_runners": 4,
    "num_gpus_per_env_runner": 1,
    "num_learners": 2,
    "num_gpus_per_learner": 1,
    "learner_sharding": "fsdp2",
    "optimizer_offload": True,
    "old_logprob_source": "old_logit_model",
    "compare_sources": ["snapshot_old"],
    "kl_coeff": 0.1,
    "evaluation_sample_timeout_s": 600,
    "env_config": {"domains": ["airline"]},
}
TRAINED = Checkpoint(Path("checkpoint"), "PPOEWMAAsync", "mini_tau2", RUN, 3)


def test_what_only_training_needs_is_left_out():
    config = TRAINED.config(changes=EVALUATION)
    assert (config.num_learners, config.num_gpus_per_learner) == (0, 0)
    assert not config.needs_old_logit_actors and not config.compare_sources
    assert config.kl_coeff == 0 and not config.optimizer_offload
    assert config.evaluation_sample_timeout_s == A_YEAR
    # The engines are the run's.
    assert (config.num_env_runners, config.num_gpus_per_env_runner) == (4, 1)
    assert RUN["env_config"] == {"domains": ["airline"]}


def test_settings_of_the_command_come_last():
    changes = {
        **EVALUATION,
        "num_env_runners": 1,
        "evaluation_sample_timeout_s": 60,
        "env_config.domains": ["retail"],
    }
    config = TRAINED.config(changes=changes)
    assert config.num_env_runners == 1 and config.evaluation_sample_timeout_s == 60
    assert config.env_config["domains"] == ["retail"]
    assert RUN["env_config"] == {"domains": ["airline"]}
    with pytest.raises(InputError, match=r"num_runners.*num_env_runners"):
        TRAINED.config(changes={"num_runners": 1})


@pytest.mark.parametrize("free", [0.0, 4.0])
def test_gpus_that_are_not_there_or_not_free(free, monkeypatch, capsys):
    config = TRAINED.config(changes=EVALUATION)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 4.0})
    monkeypatch.setattr(
        "ray.available_resources",
        lambda: {"CPU": 64.0} | ({"GPU": free} if free else {}),
    )
    _check_resources(config)
    waits = "waiting for others to end" in capsys.readouterr().err
    assert waits == (free < 4)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 64.0, "GPU": 2.0})
    with pytest.raises(InputError, match="4 GPUs, the cluster has 2"):
        _check_resources(config)
