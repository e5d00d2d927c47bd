"""`ratio_density` against numpy's histogram in float64."""

import math

import numpy as np
import torch

from rllib_llm_async.core import NUM_RATIO_BINS, RATIO_BIN_EDGES, ratio_density


def test_counts_are_those_of_a_float64_histogram():
    rng = np.random.default_rng(0)
    behavior = rng.normal(-2, 1, (7, 50))
    old = behavior + rng.choice([-1, 1], (7, 50)) * 10 ** rng.uniform(-5, 0.5, (7, 50))
    new = old + rng.choice([-1, 1], (7, 50)) * 10 ** rng.uniform(-5, 0.5, (7, 50))
    mask = rng.random((7, 50)) < 0.7
    behavior[~mask] = math.nan
    tensors = [torch.tensor(x) for x in (new, old, behavior)]
    counts = ratio_density(*tensors, torch.tensor(mask))

    edges = [-np.inf, *RATIO_BIN_EDGES, np.inf]
    expected, _, _ = np.histogram2d(
        (old - behavior)[mask], (new - old)[mask], bins=[edges, edges]
    )
    assert counts.shape == (NUM_RATIO_BINS, NUM_RATIO_BINS) == (24, 24)
    assert counts.sum() == mask.sum()
    # float32 may put a token that lies on an edge into the neighbouring bin.
    assert np.abs(counts.numpy() - expected).sum() <= 4


def test_r_d_counts_rows_and_r_s_columns():
    old = torch.tensor([-1.0, -1.0])
    counts = ratio_density(
        logp=old + torch.tensor([0.5, 0.5]),
        old_logp=old,
        behavior_logp=old + torch.tensor([0.02, 0.02]),
        mask=torch.tensor([True, False]),
    )
    ((row, column),) = counts.nonzero().tolist()
    # log r_d = -0.02 and log r_s = 0.5
    assert RATIO_BIN_EDGES[row - 1] <= -0.02 < RATIO_BIN_EDGES[row]
    assert RATIO_BIN_EDGES[column - 1] <= 0.5 < RATIO_BIN_EDGES[column]
