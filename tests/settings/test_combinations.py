"""Settings that cannot be together are refused, and those that can are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rllib_llm_async.cli.experiment_file import with_absolute_models
from rllib_llm_async.models.small_agent import small_agent_dir


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps_stale": 2}, "eps_stale: got 2, must be below 2, or eps_stale_low"),
        (
            {"discrepancy_weight": "none", "is_cap": 2.0},
            r"is_cap: got 2\.0, must be null with discrepancy_weight: none",
        ),
        (
            {"drop_uniform_groups": True, "advantage_estimator": "gae"},
            "drop_uniform_groups: got True, must be false with advantage_estimator",
        ),
        (
            {
                "learner_sharding": "fsdp2",
                "torch_ddp_kwargs": {"static_graph": True},
            },
            "torch_ddp_kwargs: .* must be empty with learner_sharding",
        ),
        (
            {"engine": {"tensor_parallel_size": 3}},
            "engine.tensor_parallel_size: got 3, must be a divisor of the model's 4",
        ),
        (
            {"engine": {"max_model_len": 40000}},
            "engine.max_model_len: got 40000, must be at most the model's 32768 pos",
        ),
        (
            {"lora_sync": "per_version", "old_logprob_source": "interrupt_sync"},
            "lora_sync: got 'per_version', must be adapter or merged with interrupt",
        ),
        (
            {
                "lora_sync": "per_version",
                "old_logprob_source": "snapshot_old",
                "compare_sources": ["interrupt_sync"],
            },
            "lora_sync: got 'per_version', must be adapter or merged with interrupt",
        ),
        (
            {"episodes_per_update": 12, "group_size": 8},
            r"episodes_per_update: got 12, .*group_size x learners = 8",
        ),
        (
            {"episodes_per_update": 24, "group_size": 8, "num_learners": 2},
            r"episodes_per_update: got 24, .*group_size x learners = 16",
        ),
        (
            {"num_concurrent_episodes": 4},
            "num_concurrent_episodes: got 4, must be at least group_size = 8",
        ),
        (
            {
                "num_gpus_per_env_runner": 2,
                "engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 2},
            },
            "num_gpus_per_env_runner: got 2, must be at least 4 = "
            r"engine\.tensor_parallel_size x engine\.pipeline_parallel_size: ",
        ),
        (
            {"num_gpus_per_env_runner": 1, "num_engines_per_env_runner": 2},
            "num_gpus_per_env_runner: got 1, .* 2 = num_engines_per_env_runner: ",
        ),
        (
            {"engine": {"hf_overrides": {"head_dtype": "float32", "rope_theta": 1e6}}},
            "engine.hf_overrides: got .*head_dtype.* at most: .*config.json",
        ),
        (
            {"engine": {"hf_config_path": "Qwen/Qwen3-4B"}},
            "engine.hf_config_path: got .*, must be null: learners would not follow",
        ),
        (
            {"max_response_tokens": 512, "engine": {"max_model_len": 512}},
            "max_response_tokens: got 512, must be below engine.max_model_len = 512",
        ),
        (
            {"max_response_tokens": 32768},
            "max_response_tokens: got 32768, .* the model's max_position_embeddings = ",
        ),
        (
            {"old_logprob_source": "snapshots"},
            "old_logprob_source: got 'snapshots', .*rollout.*mean 'snapshot_old'",
        ),
        (
            {"compare_sources": ["snapshot_old", "ewma"]},
            r"compare_sources: got .*'ewma'\], must be one of .*ewma_prox",
        ),
        (
            {"compare_sources": ["snapshot_old", "snapshot_old"]},
            "compare_sources: .*each source is named once",
        ),
        (
            {"compare_sources": ["rollout"], "old_logprob_source": "ewma_prox"},
            "compare_sources: .*an exact source",
        ),
    ],
)
def test_what_cannot_be_together(make_config, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        make_config(**settings).validate()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"eps_stale": 3.0, "eps_stale_low": 1.2},
        {"discrepancy_weight": "none"},
        {"drop_uniform_groups": True, "advantage_estimator": "rloo"},
        {"episodes_per_update": 32, "group_size": 8, "num_learners": 2},
        {"num_concurrent_episodes": 8},
        {"engine": {"tensor_parallel_size": 2}},  # on CPU
        {"engine": {"hf_overrides": {"head_dtype": "float32"}}},
        {"engine": {"max_model_len": 40000}, "model": "Qwen/Qwen3-4B"},
        {"num_gpus_per_env_runner": 2, "engine": {"tensor_parallel_size": 2}},
        {"num_engines_per_env_runner": 2},  # on CPU
        {"max_response_tokens": 511, "engine": {"max_model_len": 512}},
        {"max_response_tokens": 4096, "model": "Qwen/Qwen3-4B"},
        {"eps_ti": np.float32(1.5), "group_size": np.int64(16)},
        {"compare_sources": ["rollout"], "old_logprob_source": "snapshot_old"},
        {"lora_sync": "per_version", "old_logprob_source": "snapshot_old"},
        {"lambda": 0.9},
        {"callbacks": "ray.rllib.callbacks.callbacks.RLlibCallback"},
    ],
)
def test_what_can_be_together(make_config, settings):
    make_config(**settings).validate()


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        ("evaluation", "num_offline_eval_runners", 2),
        ("evaluation", "evaluation_force_reset_envs_before_iteration", False),
        ("evaluation", "custom_evaluation_function", print),
        ("offline_data", "input_", "somewhere"),
        ("offline_data", "output", "somewhere"),
    ],
)
def test_what_rllibs_methods_set_and_nobody_reads(make_config, method, key, value):
    config = make_config()
    getattr(config, method)(**{key: value})
    with pytest.raises(ValueError, match=f"^{key}: "):
        config.validate()


def test_a_model_directory_without_a_config_of_a_model(make_config, tmp_path):
    def refused(words):
        with pytest.raises(ValueError, match=words):
            make_config(model=str(tmp_path)).validate()

    config = json.loads((small_agent_dir() / "config.json").read_text())
    for text in ("{", "", "[]", "null", "{}", '{"model_type": 3}'):
        (tmp_path / "config.json").write_text(text)
        refused(r"^model: .*config\.json")
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused("^model: .* holds no weights")
    (tmp_path / "model.safetensors").touch()
    refused("has a chat template")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    refused("^model: .* its tokenizer cannot be read")
    for path in small_agent_dir().iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copy(path, tmp_path)
    for length in ("x", None, 1000.0, 0):
        text = json.dumps({**config, "max_position_embeddings": length})
        (tmp_path / "config.json").write_text(text)
        refused("^model: .* max_position_embeddings: got")
    (tmp_path / "config.json").write_text(json.dumps(config))
    make_config(model=str(tmp_path)).validate()
    own_code = {"auto_map": {"AutoModelForCausalLM": "own.Model"}}
    for odd, words in (
        ({"model_type": "qwen33"}, "no causal LM of model_type 'qwen33', did you mean"),
        ({"model_type": "vit"}, "no causal LM of model_type 'vit'"),
        ({"model_type": "own", **own_code}, ".* 'own'; set trust_remote_code: true"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **odd}))
        refused(f"^model: .*transformers .* has {words}")


def test_a_directory_of_a_model_does_not_hang_on_the_current_one(
    make_config, tmp_path, monkeypatch
):
    """Trials of Tune run in folders of their own."""
    shutil.copytree(small_agent_dir(), tmp_path / "mine" / "agent")
    monkeypatch.chdir(tmp_path)
    for name in ("mine/agent", "./mine/agent", Path("mine", "agent")):
        config = make_config(model=name)
        experiment = {
            "model": {"grid_search": [str(name), "small_agent", "Qwen/Qwen3-4B"]},
            "env_config": {"user": {"served_model": str(name)}},
        }
        whole = str(tmp_path / "mine" / "agent")
        assert with_absolute_models(experiment) == {
            "model": {"grid_search": [whole, "small_agent", "Qwen/Qwen3-4B"]},
            "env_config": {"user": {"served_model": whole}},
        }
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            config.validate()
            assert config.model_path == whole


def test_what_does_nothing_here_is_refused_in_python_as_well(make_config):
    for settings, words in (
        ({"train_batch_size": 64}, "'episodes_per_update'"),
        ({"num_envs_per_env_runner": 4}, "'num_concurrent_episodes'"),
        ({"explore": False}, "temperature says how"),
        ({"evaluation_num_env_runners": 1}, "the training env runners evaluate"),
        ({"batch_mode": "complete_episodes"}, "never cut"),
    ):
        with pytest.raises(ValueError, match=f"^{next(iter(settings))}: .*{words}"):
            make_config(**settings).validate()
    config = make_config().training(train_batch_size_per_learner=8)
    with pytest.raises(ValueError, match=r"^train_batch_size_per_learner: "):
        config.validate()


def test_rllibs_copy_for_evaluation_is_let_through(make_config):
    config = make_config(evaluation_interval=1)
    config.validate()
    assert config.get_evaluation_config_object().in_evaluation


def test_a_config_survives_its_dict(make_config):
    config = make_config(model="small_agent", eps_ti=1.3)
    again = make_config(**config.to_dict())
    again.validate()
    assert again.model_name_or_path == "small_agent" and again.eps_ti == 1.3


def test_an_unknown_argument_is_answered_with_ours(make_config):
    with pytest.raises(TypeError, match="learning_rate: TRL's name, here it is 'lr'"):
        make_config().training(learning_rate=1e-5)
    with pytest.raises(ValueError, match="optimizer: got 'adam', must be a mapping"):
        make_config().training(optimizer="adam")


@pytest.mark.parametrize("lora_sync", ["adapter", "per_version"])
def test_adapters_that_vllm_cannot_serve_are_refused_if_they_are_asked_for(
    make_config, lora_sync
):
    lora = {"target_modules": ["q_proj"], "bias": "all"}
    config = make_config(lora=lora, lora_sync=lora_sync)
    with pytest.raises(
        ValueError,
        match=rf"lora_sync: got '{lora_sync}', must be auto or merged: vLLM cannot "
        "serve lora.bias: all",
    ):
        _ = config.served_adapters
    assert make_config(lora=lora).served_adapters is None
    assert make_config(lora={"target_modules": ["q_proj"]}).served_adapters.rank == 8
