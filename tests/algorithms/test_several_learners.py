"""Several learners are one learner with more rows, for every estimator and source."""

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async import result_keys
from tests.algorithms.two_learners import (
    CASES,
    FIGURES,
    everything,
    report,
    run_together,
    tell_fates,
    train,
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return run_together(tmp_path_factory.mktemp("two_learners"), everything)


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


@pytest.fixture(scope="module")
def reports(two):
    """By update: what RLlib makes of one learner's reports, and of two."""
    of_two = [of_rank["reports"] for of_rank in two]
    return [*zip(merged([report(0, 1)]), merged(of_two), strict=True)]


def merged(of_learners):
    logger, results = MetricsLogger(root=True), []
    for of_update in zip(*of_learners, strict=True):
        logger.aggregate([*of_update], key="learners")
        results.append(logger.reduce()["learners"][DEFAULT_MODULE_ID])
    return [{key: v.peek() for key, v in result.items()} for result in results]


def test_what_is_reported_of_two_learners_is_of_all_their_tokens(reports):
    alone, together = reports[1]
    keys = [
        result_keys.compared(name, key)
        for name in ("current_recompute", "snapshot_old")
        for key in (
            result_keys.COMPARED_MASK_SHARE,
            result_keys.COMPARED_ERROR,
            result_keys.COMPARED_MASK_DISAGREEMENT,
            result_keys.COMPARED_CORRELATION,
        )
    ]
    figures = {key: alone[key] for key in keys}
    assert {key: together[key] for key in keys} == pytest.approx(
        figures, rel=1e-4, abs=1e-6
    )
    assert len({*figures.values()}) == 6  # two errors and disagreements are 0


@pytest.mark.parametrize(
    "key",
    [result_keys.NUM_UPDATES_WITHOUT_SIGNAL, result_keys.NUM_STEPS_WITHOUT_SIGNAL],
)
def test_what_all_learners_count_is_counted_once(reports, key):
    alone, together = reports[2]
    assert alone[key] == together[key] == 1


def test_each_learner_settles_its_share_and_an_update_on_nothing_is_none(two):
    settled, published, num_tokens = tell_fates(0, 1)
    assert published == [1, 2] and num_tokens[:2] > [0, 0] and num_tokens[2] == 0
    shares = []
    for of_rank in two:
        of_one, versions, tokens = of_rank["fates"]
        assert (versions, tokens) == (published, num_tokens)
        shares.append(of_one)
    assert [len(fates) for fates in shares[0]] == [8, 12, 0]
    assert [len(fates) for fates in shares[1]] == [4, 0, 0]
    for update, fates in enumerate(settled):
        told = [*shares[0][update], *shares[1][update]]
        # In the first step both hold what the one does; later steps hold other rows.
        assert {(f.group, f.key) for f in told} == {(f.group, f.key) for f in fates}
        assert total(told) == total(fates)
    assert sum(f.num_trained for f in settled[0]) > 0


def total(fates):
    return sum(fate.num_trained + fate.num_masked for fate in fates)
