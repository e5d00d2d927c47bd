"""Several learners are one learner with more rows, for every estimator and source."""

import pytest
import torch

from tests.algorithms.two_learners import CASES, FIGURES, run_two, train


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_two(tmp_path_factory.mktemp("two_learners"))


@pytest.mark.parametrize("name", CASES)
def test_two_learners_end_where_one_does(two, name):
    """One of the two gets twice as many episodes, then all of them."""
    alone, version, figures = train(0, 1, CASES[name])
    first, second = (of_rank[name] for of_rank in two)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], alone, atol=2e-6, rtol=0)
    assert first[1] == second[1] == version == 2
    assert first[2] == second[2] == pytest.approx(figures, rel=1e-4)
    assert len(figures) == len(FIGURES) and figures["staleness_max"] == 1.0


def test_the_cases_are_not_all_the_same(two):
    ends = [two[0][name][0] for name in CASES]
    moved = (ends[0] - train(0, 1, {"lr": 0.0})[0]).abs().max()
    assert moved > 1e-3
    different = {round(float(end.double().square().sum()), 6) for end in ends}
    assert len(different) > len(CASES) // 2


def test_auto_decides_alike_where_one_learner_alone_has_stale_tokens(two):
    (first, metrics), (second, others) = (of_rank["auto"] for of_rank in two)
    assert first == second
    assert metrics["auto_reason"] == others["auto_reason"]
    assert "nothing measured yet" not in metrics["auto_reason"]
