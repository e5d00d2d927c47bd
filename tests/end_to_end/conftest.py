"""A small configuration of the real loop that the tests here vary."""

import tempfile
from pathlib import Path

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig

ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 32,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "enforce_eager": True,
}


@pytest.fixture(scope="session")
def make_config():
    """``make_config(**training)`` or ``make_config(PPOEWMAAsyncConfig, ...)``."""

    def make(config_class=AsyncDecoupledPPOConfig, **training):
        return (
            config_class()
            .environment("mini_tau2", env_config={"domains": ["airline"]})
            .training(
                **{
                    "engine": ENGINE,
                    "episodes_per_update": 16,
                    "group_size": 4,
                    "num_concurrent_episodes": 16,
                    "minibatch_size": 8,
                    "lr": 1e-4,
                    "eps_ti": 1.2,
                    **training,
                }
            )
            .debugging(seed=0)
        )

    return make


@pytest.fixture
def learner_results():
    return lambda result: result["learners"]["default_policy"]


@pytest.fixture
def tmp_path():
    """Not pytest's own: Ray's socket paths must stay below 108 characters."""
    with tempfile.TemporaryDirectory(prefix="rllib_") as directory:
        yield Path(directory)
