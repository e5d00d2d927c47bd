"""Histograms of both ratios, and seconds by phase."""

import numpy as np
import pytest

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.monitoring.panels import LOG_R_D, LOG_R_S, ratio_histograms
from rllib_llm_async.monitoring.timeline import seconds_by_phase


def test_each_ratio_has_its_own_histogram():
    counts = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
    counts[3, 12] = 7
    found = ratio_histograms({"ratio_density": counts.flatten().tolist()})
    assert found[LOG_R_D][0].nonzero()[0].tolist() == [3]
    assert found[LOG_R_S][0].nonzero()[0].tolist() == [12]


def test_seconds_are_a_mean_over_parts_of_a_kind():
    spans = [("engine 0", "a", 0.0, 2.0), ("engine 1", "a", 0.0, 4.0)]
    assert seconds_by_phase(spans) == {"engine": {"a": pytest.approx(3.0)}}
