"""A small configuration of the real loop that the tests here vary."""

import tempfile
from pathlib import Path

import pytest

from rllib_llm_async import AsyncDecoupledPPOConfig
from tests.end_to_end import watched_run

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
def check_versions():
    """``check_versions(learner results)``: every update that had a signal published.

    One whose groups all earned the same changes nothing and publishes nothing; few may
    be so, else a test that needs versions would see none.
    """

    def check(results, first=0):
        moved = [int(result["had_signal"]) for result in results]
        assert [result["policy_version"] for result in results] == [
            first + sum(moved[:number]) for number in range(len(moved))
        ]
        assert 2 * sum(moved) >= len(moved)

    return check


@pytest.fixture
def tmp_path():
    """Not pytest's own: Ray's socket paths must stay below 108 characters."""
    with tempfile.TemporaryDirectory(prefix="rllib_") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def finished_run():
    """See `watched_run.train`."""
    with tempfile.TemporaryDirectory(prefix="rllib_") as directory:
        yield watched_run.train(Path(directory))
