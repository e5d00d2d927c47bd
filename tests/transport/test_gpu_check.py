"""Where `benchmarks.gpu_check` would put learner and engine, seen without a GPU."""

from pathlib import Path

import pytest

from benchmarks import gpu_check
from rllib_llm_async.models.small_agent import small_agent_dir


@pytest.mark.parametrize(
    ("transport", "num_gpus", "learner", "runner"),
    [
        ("shared_file", 0, 0, 0),
        ("shared_file", 1, 0.5, 0.5),
        ("shared_file", 2, 1, 1),
        ("nccl", 2, 1, 1),
        ("ipc", 1, 0.5, 0.5),
        ("ipc", 2, 0.5, 0.5),
    ],
)
def test_each_way_gets_the_gpus_that_it_needs(transport, num_gpus, learner, runner):
    assert gpu_check.missing(transport, num_gpus) is None
    config = gpu_check.make_config(
        gpu_check.WHOLE, Path(small_agent_dir()), transport, num_gpus
    )
    assert config.chosen_transport == transport
    assert config.num_gpus_per_learner == learner
    assert config.num_gpus_per_env_runner == runner


@pytest.mark.parametrize("num_gpus", [0, 1, 2])
def test_all_sources_find_room_beside_each_other(num_gpus):
    config = gpu_check.compare_all(
        gpu_check.make_config(
            gpu_check.WHOLE, Path(small_agent_dir()), "shared_file", num_gpus
        ),
        num_gpus,
    )
    taken = (
        config.num_gpus_per_learner,
        config.num_gpus_per_env_runner,
        config.old_logit_model["num_gpus"],
    )
    assert sum(taken) <= num_gpus
    assert all(taken) or not num_gpus


@pytest.mark.parametrize(
    ("transport", "num_gpus"), [("nccl", 0), ("nccl", 1), ("ipc", 0)]
)
def test_what_is_missing_is_said(transport, num_gpus):
    assert gpu_check.missing(transport, num_gpus).startswith("needs 2 GPUs: ")
