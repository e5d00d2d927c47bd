"""Admission just in time: what it gains, and what it may cost."""

import pytest

from benchmarks.admission import JOBS, measure

pytestmark = pytest.mark.thorough

#: Where the learner, and not the engines or the bound, sets the speed.
LEARNER_BOUND = ["constant 4 s", "short 1 s", "few places", "users of 50-400 ms"]


@pytest.mark.parametrize("name", LEARNER_BOUND)
def test_tokens_are_fresher_and_the_learner_hardly_waits(name):
    paced = measure(JOBS[name], is_greedy=False, num_updates=60)
    greedy = measure(JOBS[name], is_greedy=True, num_updates=60)
    assert paced.wait_fraction < 0.05
    assert paced.updates_per_hour >= 0.97 * greedy.updates_per_hour
    assert paced.mean_staleness <= 1.2 < 1.9 < greedy.mean_staleness


@pytest.mark.parametrize("name", ["Pareto", "engine bound"])
def test_what_pacing_cannot_cure_it_does_not_make_worse(name):
    paced = measure(JOBS[name], is_greedy=False, num_updates=60)
    greedy = measure(JOBS[name], is_greedy=True, num_updates=60)
    assert paced.wait_fraction <= greedy.wait_fraction + 0.02
