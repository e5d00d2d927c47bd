"""What vLLM's engine process finds in its environment."""

import os

import pytest

from rllib_llm_async.engine import vllm_process
from rllib_llm_async.models.small_agent import small_agent_dir


@pytest.fixture
def environment(monkeypatch):
    """``environment(dtype, **there)``: what is set for an engine on a GPU."""

    def prepared(dtype, **there):
        monkeypatch.setattr(os, "environ", there)
        transfer = {"weight_transfer_config": {"backend": "nccl"}}
        vllm_process._prepare_environment({"dtype": dtype, **transfer}, on_cpu=False)
        return os.environ

    return prepared


def test_products_of_a_float32_engine_are_of_float32_numbers(environment, monkeypatch):
    name = "TRITON_F32_DEFAULT"
    assert environment("float32")[name] == "ieee"
    assert environment("float32", **{name: "tf32x3"})[name] == "tf32x3"
    assert name not in environment("bfloat16")
    knobs = pytest.importorskip("triton.knobs")
    monkeypatch.undo()
    monkeypatch.setenv(name, "ieee")
    assert knobs.language.fp32_default == "ieee"  # `tl.dot` asks for it


def test_an_engine_that_does_not_start_says_where_its_own_words_are(monkeypatch):
    from vllm.v1.engine.async_llm import AsyncLLM

    def fails(*args, **kwargs):
        raise RuntimeError("Engine core initialization failed. See root cause above.")

    monkeypatch.setattr(AsyncLLM, "from_engine_args", fails)
    monkeypatch.setattr(vllm_process, "_prepare_environment", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match="See root cause above") as raised:
        vllm_process.start_vllm(str(small_agent_dir()), {"max_model_len": 512}, 0)
    # Of a process that Ray has started: its files.
    assert os.path.realpath("/proc/self/fd/1") in str(raised.value)
