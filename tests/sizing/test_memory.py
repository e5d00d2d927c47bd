"""What a job takes, by its settings; figures of well-known models."""

import json

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    Gemma3TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from rllib_llm_async import AsyncDecoupledPPOConfig
from rllib_llm_async.models.small_agent import small_agent_dir
from rllib_llm_async.sizing.memory import kv_bytes_per_token, size_of

QWEN3_4B = Qwen3Config(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)
QWEN3_30B_A3B = Qwen3MoeConfig(
    hidden_size=2048,
    moe_intermediate_size=768,
    num_hidden_layers=48,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=151936,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
)


pytestmark = pytest.mark.thorough


def directory_of(config, tmp_path):
    """A model directory in which the weights themselves are missing."""
    for file in small_agent_dir().iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / file.name).symlink_to(file)
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


def size(
    model="small_agent", num_learners=0, gpus=0, runners=None, ddp=None, **training
):
    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini_tau2", env_config={"domains": ["airline"]})
        .learners(num_learners=num_learners, num_gpus_per_learner=gpus)
        .env_runners(**(runners or {}))
        .framework(torch_ddp_kwargs=ddp or {})
        .training(
            **{
                "model": model,
                "old_logprob_source": "snapshot_old",
                "micro_batch_tokens": 1024,
                "engine": {"dtype": "bfloat16", "max_model_len": 512},
                "episodes_per_update": 64,
                "minibatch_size": None,
                **training,
            }
        )
    )
    return size_of(config)


def parts(said):
    return {(p.where, part.what): part.nbytes for p in said.places for part in p.parts}


@pytest.fixture(scope="module")
def plain():
    return parts(size())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"old_logprob_source": "ppo_ewma_async"}, "EWMA"),
        ({"compare_sources": ["ppo_ewma_async"]}, "EWMA"),
        ({"max_staleness": 2}, "old versions"),
        ({"compute_dtype": "bfloat16"}, "old versions"),
        ({"snapshot_memory_bytes": 9_000_000}, "old versions"),
        ({"kl_coeff": 0.1}, "reference"),
        ({"lora": {"r": 4, "target_modules": "all-linear"}}, "gradients"),
        ({"optimizer_offload": True}, "moments"),
        ({"micro_batch_tokens": 4096}, "a pass"),
        ({"engine": {"max_model_len": 2048}}, "a pass"),
        ({"gradient_checkpointing": True}, "a pass"),
        ({"num_learners": 2}, "between learners"),
        ({"num_learners": 2, "learner_sharding": "fsdp2"}, "weights, 1 / 2"),
        ({"num_learners": 2, "learner_sharding": "fsdp2"}, "layers gathered"),
        ({"old_logprob_source": "old_logit_model"}, "old-logit actor"),
        ({"engine": {"dtype": "float32", "max_model_len": 512}}, "each engine"),
        ({"engine": {"tensor_parallel_size": 2, "max_model_len": 512}}, "each engine"),
        (
            {"engine": {"kv_cache_dtype": "fp8", "max_model_len": 512}},
            "keys and values",
        ),
        ({"weight_transport": "nccl"}, "/dev/shm"),
        ({"episodes_per_update": 128}, "object store"),
        ({"max_staleness": 8}, "object store"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_settings_count(plain, change, where):
    now = parts(size(**change))
    differing = [key for key, nbytes in now.items() ^ plain.items()]
    assert any(where in " ".join(key) for key in differing), differing


@pytest.mark.parametrize("views", [False, True])
def test_gradients_of_several_learners_lie_twice_unless_they_are_views(views):
    said = size(num_learners=2, ddp={"gradient_as_bucket_view": views}).places[0]
    between = [part for part in said.parts if part.what == "gradients between learners"]
    assert len(between) == (not views)


@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_a_version_lies_where_engines_take_it_from(transport):
    def where(**settings):
        places = size(gpus=0.5, runners={"num_gpus_per_env_runner": 0.5}, **settings)
        return [
            (where, n) for (where, what), n in parts(places).items() if "as en" in what
        ]

    (of_file, nbytes), *_ = where()
    assert of_file == "/dev/shm, first learner's node"
    assert where(weight_transport=transport) == [("the learner: GPU, training", nbytes)]


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_old_logit_actors_take_trained_weights_out_of_the_object_store(lora):
    said = size(old_logprob_source="old_logit_model", max_staleness=4, lora=lora)
    _, weights = said.places[-1].parts
    assert weights.what == "trained weights of 5 versions, for scoring"
    assert weights.nbytes == 5 * 4 * said.num_trained


def test_gpus_name_the_places(plain):
    said = size(gpus=1, runners={"num_gpus_per_env_runner": 1})
    assert [p.where for p in said.places][:4] == [
        "the learner: GPU, training",
        "the learner: host memory",
        "each GPU of an engine",
        "each GPU of an engine: each sequence",
    ]


@pytest.mark.slow  # 36 layers, operation by operation
def test_a_large_model_takes_what_it_takes_and_this_process_nothing(tmp_path):
    """Beside figures that were reckoned by hand for the tuned file of Qwen3-4B."""
    said = size(
        directory_of(QWEN3_4B, tmp_path),
        num_learners=2,
        gpus=1,
        learner_sharding="fsdp2",
        compute_dtype="bfloat16",
        gradient_checkpointing=True,
        micro_batch_tokens=16384,
        engine={"dtype": "bfloat16", "max_model_len": 16384},
    )
    assert said.num_parameters == said.num_trained == 4_022_468_096
    learner, beside, engine, sequence, *_ = said.places
    of_learner = {part.what: part.nbytes / 1e9 for part in learner.parts}
    assert of_learner["weights, 1 / 2 of them"] == pytest.approx(8.04, abs=0.01)
    assert of_learner["Adam's moments"] == pytest.approx(16.09, abs=0.01)
    assert of_learner["layers gathered"] == pytest.approx(0.8 + 1.56, abs=0.05)
    # Inputs of layers 3.0, one layer 3, logits 1, embeddings' gradient 1.56.
    (a_pass,) = (n for what, n in of_learner.items() if what.startswith("a pass"))
    assert a_pass == pytest.approx(3.0 + 3 + 1 + 1.56, rel=0.1)
    assert beside.parts[0].nbytes / 1e9 == pytest.approx(5 * 8.04 / 2, abs=0.1)
    assert engine.nbytes == 2 * said.num_parameters
    assert sequence.nbytes == 16384 * 147_456


def test_experts_of_a_mixture_travel_with_episodes(tmp_path):
    smaller = {"num_hidden_layers": 3, "num_experts": 16, "vocab_size": 1000}
    few_layers = Qwen3MoeConfig(**{**QWEN3_30B_A3B.to_dict(), **smaller})
    model = directory_of(few_layers, tmp_path)
    small = {"compute_dtype": "bfloat16", "max_staleness": 0, "model": model}
    with_experts, without = (
        size(**small, router_replay=replay).places[-1].nbytes
        for replay in ("auto", "none")
    )
    assert with_experts - without == 64 * 512 * 3 * 8 * 2


@pytest.mark.parametrize(
    ("model", "arguments", "nbytes"),
    [
        (QWEN3_4B, {}, 147_456),
        (QWEN3_4B, {"kv_cache_dtype": "fp8_e5m2"}, 73_728),
        (QWEN3_30B_A3B, {}, 98_304),
        # One latent vector of 512 and 64 numbers for each of 61 layers.
        (DeepseekV3Config(), {}, 61 * (512 + 64) * 2),
        # Linear attention has a state of one size, whatever the length.
        (Qwen3NextConfig(), {}, 12 * 2 * 2 * 256 * 2),
        (Gemma3TextConfig(), {}, 26 * 2 * 4 * 256 * 2),
    ],
    ids=["qwen3", "fp8", "moe", "latent", "linear", "sliding"],
)
def test_keys_and_values_of_a_token(model, arguments, nbytes):
    assert kv_bytes_per_token(model, torch.bfloat16, arguments) == nbytes


def test_a_model_that_cannot_be_read(tmp_path):
    model = directory_of(QWEN3_4B, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "no_such_model"}))
    with pytest.raises(ValueError, match="no_such_model"):
        size(model)
