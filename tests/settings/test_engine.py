"""`engine` by the names, types and bounds of vLLM's own classes."""

import pytest

from rllib_llm_async.settings.engine import check_engine_settings


@pytest.mark.parametrize(
    "engine",
    [
        {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 128},
        {"kv_cache_memory_bytes": 1 << 27, "block_size": 32, "enforce_eager": True},
        {"gpu_memory_utilization": 1, "tensor_parallel_size": 2},
        {"max_model_len": -1},
        {"distributed_executor_backend": "mp"},
        {"max_model_len": None, "max_num_seqs": None},
        {"enable_prefix_caching": None, "kv_cache_dtype": "fp8"},
        {"hf_overrides": {"rope_theta": 1e6}, "compilation_config": 0},
        {"limit_mm_per_prompt": {"image": 0}, "served_model_name": ["a"]},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}},
    ],
)
def test_takes(engine):
    check_engine_settings(engine)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"max_model_len": "long"}, "engine.max_model_len: got 'long', must be a who"),
        ({"enable_lora": True}, "engine.enable_lora: lora and lora_sync decide it"),
        ({"tokenizer": "x"}, "engine.tokenizer: .*those of `model`"),
        ({"hf_token": "hf_secret"}, "engine.hf_token: .*set the variable HF_TOKEN"),
        ({"max_model_len": -2}, "engine.max_model_len: got -2, .*at least -1"),
        ({"max_model_len": 512.0}, r"engine.max_model_len: got 512\.0"),
        ({"max_num_seqs": 0}, "engine.max_num_seqs: got 0, .*at least 1"),
        ({"max_num_seqs": True}, "engine.max_num_seqs: got True"),
        ({"gpu_memory_utilization": 1.5}, "got 1.5, must be a number .*at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "gpu_memory_utilization: got nan"),
        ({"tensor_parallel_size": "2"}, "engine.tensor_parallel_size: got '2'"),
        ({"enforce_eager": "yes"}, "engine.enforce_eager: got 'yes', must be true or"),
        ({"kv_cache_dtype": "int3"}, "engine.kv_cache_dtype: got 'int3', .*'fp8'"),
        ({"block_size": -16}, "engine.block_size: got -16, .*above 0"),
        ({"kv_cache_memory_bytes": 0}, "engine.kv_cache_memory_bytes: got 0"),
        ({"kv_cache_memory_bytes": 1e9}, "kv_cache_memory_bytes: got 10+.0, .*whole"),
        ({"seed": -1}, "engine.seed: got -1"),
        ({"dtype": "half"}, "engine.dtype: got 'half'.*bfloat16"),
        ({"dtype": ["float32"]}, r"engine.dtype: got \['float32'\]"),
        (
            {"distributed_executor_backend": "ray"},
            "engine.distributed_executor_backend: got 'ray', must be mp, uni or null: "
            "all workers of an engine sit on its runner's node",
        ),
        ({"nnodes": 2}, "engine.nnodes: .*more nodes are more env runners"),
        ({"top_p": 0.9}, "engine.top_p: .*whole distribution"),
        ({"model": "m"}, "engine.model: .*beside engine"),
        ({"max_modl_len": 9}, "engine.max_modl_len: .*'max_model_len'"),
        ({3: 9}, "engine.3: no argument"),
    ],
)
def test_does_not_take(engine, words):
    with pytest.raises(ValueError, match=words) as error:
        check_engine_settings(engine)
    assert "\n" not in str(error.value)
