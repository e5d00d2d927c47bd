"""A run of two learners that share the weights goes on with one or three."""

import errno
import shutil

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch.distributed.checkpoint.api import CheckpointException

from rllib_llm_async.algorithms.async_decoupled_ppo.torch import sharded_checkpoint
from rllib_llm_async.algorithms.async_decoupled_ppo.torch.sharded_checkpoint import (
    SHARDS,
)
from rllib_llm_async.cli.sharded_weights import read_weights
from tests.algorithms.conftest import quick_and_slow
from tests.algorithms.sharded_learners import (
    GoesOn,
    Saves,
    train,
    whole_weights,
)
from tests.algorithms.two_learners import run_together

SETTINGS = {
    "old_logprob_source": "snapshot_old",
    "compare_sources": ["ewma_prox", "auto"],
    "advantage_estimator": "gae",
    "kl_coeff": 0.5,
    "optimizer": {"eps": 1e-3, "weight_decay": 0.1},
    "lr": 1e-3,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    saved = run_together(tmp_path_factory.mktemp("out"), Saves(path, SETTINGS))
    return path, saved[0]


@pytest.fixture(scope="module")
def in_one_go():
    return whole_weights(train(0, 1, SETTINGS, last=4))


@pytest.mark.parametrize("num_learners", quick_and_slow([1, 2, 3], [1, 3]))
def test_any_number_of_learners_goes_on(checkpoint, in_one_go, num_learners, tmp_path):
    path, saved = checkpoint
    for restored, end, versions in run_together(
        tmp_path, GoesOn(path, SETTINGS), num_learners
    ):
        assert torch.equal(restored, saved)
        assert versions == [0, 1, 2]
        torch.testing.assert_close(end, in_one_go, atol=1e-5, rtol=0)
    assert (in_one_go - saved).abs().max() > 1e-4


def test_the_weights_are_read_as_data(checkpoint):
    path, saved = checkpoint
    learner = train(0, 1, SETTINGS, last=0)
    learner.load_weights(read_weights(path / SHARDS), version=2)
    assert torch.equal(whole_weights(learner), saved)


def test_files_that_are_missing_or_damaged_are_one_line(checkpoint, tmp_path):
    path, _ = checkpoint
    weights = sorted((path / SHARDS).glob("*.safetensors"))

    def without(names):
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(path / SHARDS, copy)
        for name in names:
            (copy / name).unlink()
        return copy

    first = [file.name for file in weights if file.name.startswith("shard-00001")]
    cut = without([])
    for file in cut.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for folder, words in (
        (without(first), "a learner's file is missing"),
        (without([file.name for file in weights]), "no weights in it"),
        (cut, "damaged"),
    ):
        with pytest.raises(ValueError, match=f"^{folder}: .*{words}") as error:
            read_weights(folder)
        assert "\n" not in str(error.value)


@pytest.fixture
def group_after_an_update(make_learner_group, make_episodes):
    group = make_learner_group(learner_sharding="fsdp2", kl_coeff=0.1)
    episodes = make_episodes(np.random.default_rng(0), [0])
    group._learner.update(training_data=TrainingData(episodes=episodes))
    return group


@pytest.mark.parametrize("sharding", ["fsdp2", "none"])
def test_a_group_writes_tensors_in_shards_alone(
    group_after_an_update, make_learner_group, sharding, tmp_path
):
    saved = whole_weights(group_after_an_update._learner)
    group_after_an_update.save_to_path(tmp_path)
    learner = tmp_path / "learner"
    assert not (learner / "rl_module" / DEFAULT_MODULE_ID).exists()
    assert (learner / "state.pkl").stat().st_size < saved.nbytes / 10
    group = make_learner_group(learner_sharding=sharding, kl_coeff=0.1)
    group.restore_from_path(tmp_path)
    assert torch.equal(whole_weights(group._learner), saved)
    assert group._learner._version == 1
    assert group._learner._source.store.versions == [0, 1]


def test_a_full_disk_is_an_error_of_the_disk(
    group_after_an_update, monkeypatch, tmp_path
):
    def fail(*args, **kwargs):
        failures = {0: (RuntimeError(), None), 1: (OSError(errno.ENOSPC, "full"), None)}
        raise CheckpointException("gather", failures)

    monkeypatch.setattr(sharded_checkpoint.dcp, "save", fail)
    with pytest.raises(OSError, match="full"):
        group_after_an_update.save_to_path(tmp_path)


def test_a_state_without_its_tensors_is_refused(group_after_an_update):
    state = group_after_an_update.get_state()
    with pytest.raises(ValueError, match=r"^learner_sharding: .*restore it by path"):
        group_after_an_update.set_state(state)
