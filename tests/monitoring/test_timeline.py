"""Phases of a `Timeline`, and that those of several actors add up."""

from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_llm_async.monitoring import timeline as module
from rllib_llm_async.monitoring.timeline import Timeline, logged_spans
from rllib_llm_async.result_keys import TIMELINE


class Clock:
    now = 100.0

    def time(self):
        return self.now


def test_short_gaps_are_closed_and_open_phases_cut(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    line = Timeline("engine 1")
    line.begin("generating")
    clock.now = 101.0
    line.end("generating")
    clock.now = 101.01
    line.begin("generating")
    clock.now = 103.0
    assert line.take() == [("engine 1", "generating", 100.0, 103.0)]
    clock.now = 104.0
    line.end("generating")
    clock.now = 105.0
    with line.phase("generating"):
        clock.now = 106.0
    line.end("never begun")
    assert line.take() == [
        ("engine 1", "generating", 103.0, 104.0),
        ("engine 1", "generating", 105.0, 106.0),
    ]
    assert line.take() == []


def test_spans_of_several_actors_add_up_under_one_key():
    root = MetricsLogger(root=True)
    logged = []
    for number in range(2):
        metrics = MetricsLogger()
        line = Timeline(f"learner {number}")
        with line.phase("training"):
            pass
        line.log_to(metrics, "module")
        logged.append(metrics.reduce())
    root.aggregate(logged, key="learners")
    spans = root.compile()["learners"]["module"][TIMELINE]
    assert [span[0] for span in spans] == ["learner 0", "learner 1"]
    assert root.compile()["learners"]["module"][TIMELINE] == []


def test_a_single_span_is_still_a_list_of_one():
    line, root, leaf = Timeline("engine 1"), MetricsLogger(root=True), MetricsLogger()
    with line.phase("generating"):
        pass
    line.log_to(leaf, "module")
    root.aggregate([leaf.reduce()], key="env_runners")
    compiled = root.compile()["env_runners"]["module"][TIMELINE]
    (span,) = logged_spans(compiled)
    assert span[:2] == ("engine 1", "generating")
    assert logged_spans([]) == []
