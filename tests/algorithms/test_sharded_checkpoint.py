"""A run of two learners that share the weights goes on with one or three."""

import pytest
import torch

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


@pytest.mark.parametrize("num_learners", [1, 2, 3])
def test_any_number_of_learners_goes_on(checkpoint, in_one_go, num_learners, tmp_path):
    path, saved = checkpoint
    ends = run_together(tmp_path, GoesOn(path, SETTINGS), num_learners)
    for restored, end, snapshots in ends:
        assert torch.equal(restored, saved)
        assert snapshots == [0, 1, 2]
        torch.testing.assert_close(end, in_one_go, atol=1e-5, rtol=0)
    assert (in_one_go - saved).abs().max() > 1e-4
