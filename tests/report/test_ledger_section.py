"""The ledger's section: figures that a reader can check against the results."""

from pathlib import Path

import pytest

from rllib_llm_async.coordination.ledger import EpisodeFate, Ledger, LedgerEpisode
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.ledger import ledger_section
from rllib_llm_async.report.load import Run
from rllib_llm_async.result_keys import LEDGER_IDENTITY_ERROR


def play(ledger, number, episodes, fates):
    ledger.start(number, len(episodes), "retail")
    ledger.finish(
        number, [LedgerEpisode(key, *episode, "retail") for key, episode in episodes]
    )
    ledger.settle([EpisodeFate(number, *fate) for fate in fates])
    ledger.close(number)


@pytest.fixture
def run():
    """Two updates: short successes are trained on, a long failure is too old."""
    ledger, rows = Ledger(), []
    short, long = (50, 1.0), (5000, 0.0)
    play(ledger, 0, [(0, short), (1, short)], [(0, 40, 10), (1, 50, 0)])
    rows.append({"training_iteration": 1, **ledger.metrics()})
    play(ledger, 1, [(0, short), (1, long)], [(0, 0, 50), (1, 0, 0, "stale")])
    ledger.start(2, 2, "retail")
    ledger.progress({2: 7})
    ledger.drop(2, "timeout")
    ledger.start(3, 2, "retail")
    rows.append({"training_iteration": 2, **ledger.metrics()})
    return Run(Path("trial"), rows, {}, {})


def traces(section):
    return {
        (trace.name, trace.xaxis): dict(zip(trace.x, trace.y, strict=True))
        for trace in section.figure.data
    }


def test_bars_and_shares_are_those_of_the_results(run):
    section = ledger_section([Group("all", [run], "#0072B2")])
    drawn = traces(section)
    assert drawn["trained", "x"] == {1: 2, 2: 0}
    assert drawn["masked", "x"] == {1: 0, 2: 1}
    assert drawn["dropped stale", "x"] == {2: 1}
    assert drawn["dropped timeout", "x2"] == {2: 7}
    assert drawn["trained", "x2"] == {1: 90, 2: 0}
    assert drawn["in flight", "x"] == {1: 0, 2: 2}
    # 90 of 150 tokens, 0 of 5000, 0 of 7.
    assert drawn["all", "x3"] == {"up to 64": 0.6, "up to 16384": 0, "unfinished": 0}
    assert drawn["all", "x4"] == {"0": 0, "1": 0.6, "unfinished": 0}
    assert section.finding == (
        "Of 8 episodes 25.0 % were trained on and 37.5 % dropped (timeout 2, stale 1). "
        "Every episode and token is accounted for in every iteration."
    )


def test_an_identity_that_fails_is_said(run):
    run.rows[0][LEDGER_IDENTITY_ERROR] = 12.0
    finding = ledger_section([Group("all", [run], "#0072B2")]).finding
    assert finding.endswith(
        "Up to 12 episodes and tokens are not accounted for: somebody miscounts."
    )


def test_runs_without_a_ledger_say_what_would_help():
    run = Run(Path("trial"), [{"training_iteration": 1}], {}, {})
    section = ledger_section([Group("all", [run], "#0072B2")])
    assert section.figure is None and "no ledger" in section.missing
