"""Marks stand where a count of the Learners grew."""

from rllib_llm_async.monitoring.panels import EWMA_RESET, NEW_VERSION, Marks


def test_a_run_that_goes_on_begins_without_a_mark():
    marks = Marks()
    counts = [(3.0, 41), (3.0, 42), (4.0, 42)]
    assert [
        marks.of_update({"ewma_num_resets": resets, "policy_version": version})
        for resets, version in counts
    ] == [
        {EWMA_RESET: 0, NEW_VERSION: 0},
        {EWMA_RESET: 0, NEW_VERSION: 1},
        {EWMA_RESET: 1, NEW_VERSION: 0},
    ]


def test_an_iteration_without_an_update_changes_nothing():
    marks = Marks()
    updates = [{}, {"policy_version": 5}, {}, {"policy_version": 6}]
    told = [marks.of_update(figures)[NEW_VERSION] for figures in updates]
    assert told == [0, 0, 0, 1]
