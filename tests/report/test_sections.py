"""What sections of a report draw and say, by hand."""

import cProfile
import pstats
from pathlib import Path

import numpy as np
import pytest

from rllib_llm_async.core import NUM_RATIO_BINS
from rllib_llm_async.report.cost import _price
from rllib_llm_async.report.density import density_section
from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.mask import mask_and_clip_section
from rllib_llm_async.report.success import success_section
from rllib_llm_async.report.sweep import sweep_section
from rllib_llm_async.report.timeline import timeline_section


def run_of(*rows, **config):
    rows = [{"training_iteration": n, **row} for n, row in enumerate(rows, 1)]
    return Run(Path("experiment/trial"), rows, {}, config)


def test_bounds_are_drawn_where_they_act_and_shares_are_of_their_own_ratio():
    counts = np.zeros((NUM_RATIO_BINS, NUM_RATIO_BINS), int)
    counts[3, 12], counts[12, 12] = 30, 10  # r_d far from 1 and near it
    key = "learners/default_policy/ratio_density"
    bounds = {"eps_ti": 1.05, "eps_stale": 1.2, "eps_stale_low": 1.5}
    run = run_of({key: counts.flatten().tolist()}, **bounds)
    section = density_section([Group("all", [run])])
    shapes = section.figure.layout.shapes
    vertical = sorted(s.x0 for s in shapes if s.x0 == s.x1)
    horizontal = sorted(s.y0 for s in shapes if s.y0 == s.y1)
    # log 1.05 = 0.0488 lies 0.72 of the way from edge 18, 10^-1.6, to the next; the
    # middle of the axis is 11.5.
    assert vertical == pytest.approx([23 - 19.22, 19.22], abs=0.01)
    # log 0.5 = -0.693 and log 1.2 = 0.182.
    assert horizontal == pytest.approx([23 - 22.10, 20.65], abs=0.01)
    assert "r_d is within 1 % of 1 for 25.0 %" in section.finding
    assert "r_s for 100 %" in section.finding


def test_many_resets_are_drawn_in_time_that_grows_with_their_number():
    def calls(num_resets):
        run = run_of(
            *(
                {
                    "learners/default_policy/train_infer_mask": 0.88,
                    "learners/default_policy/ewma_num_resets": float(number),
                }
                for number in range(1, num_resets + 1)
            )
        )
        with cProfile.Profile() as profile:
            section = mask_and_clip_section([Group("all", [run], "#0072B2")])
        shapes = section.figure.layout.shapes
        assert [s.x0 for s in shapes if s.yref == "y domain"] == list(
            range(1, num_resets + 1)
        )
        assert len(shapes) == 2 * num_resets  # one in either panel
        return pstats.Stats(profile).total_calls

    # Twice as many are at most twice the work, not four times.
    assert calls(40) < 2.5 * calls(20)


def test_success_begins_where_it_was_evaluated_before_the_first_update():
    at_start = "evaluation_at_start/env_runners/success_rate"
    held_out = "evaluation/env_runners/success_rate"
    training = "env_runners/success_rate"
    run = run_of(
        {training: 0.3, at_start: 0.25, held_out: 0.5}, {training: 0.6, held_out: 0.75}
    )
    section = success_section([Group("all", [run], "#0072B2")])
    marks = section.figure.data[-1]
    assert list(zip(marks.x, marks.y)) == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert section.finding.startswith("Success rises from 0.250 to 0.750;")
    other = run_of({training: 0.1})
    groups = [Group("good", [run], "#0072B2"), Group("bad", [other], "#0072B2")]
    assert success_section(groups).finding == (
        "At the end good succeeds most often (0.750), bad least (0.100)."
    )


def test_a_sweep_s_cells_hold_their_own_runs_and_the_best_is_named():
    runs = [
        run_of(
            {"env_runners/success_rate": success},
            eps_ti=eps_ti,
            eps_stale=eps_stale,
            old_logprob_source="rollout",
        )
        for eps_ti, eps_stale, success in (
            (1.1, 1.2, 0.2),
            (1.1, 1.5, 0.4),
            (1.3, 1.2, 0.9),
            (1.3, 1.2, 0.7),
        )
    ]
    section = sweep_section([Group("all", runs)])
    success = section.figure.data[0]
    assert (success.x, success.y) == (("1.1", "1.3"), ("1.2", "1.5"))
    z = np.array(success.z, float)
    assert z[0].tolist() == pytest.approx([0.2, 0.8])
    assert z[1, 0] == pytest.approx(0.4) and np.isnan(z[1, 1])
    assert section.finding.startswith(
        "Best: rollout, eps_ti 1.3, eps_stale 1.2 with 0.900; 0 of 4"
    )


def test_the_price_of_a_source_is_all_that_waits_for_it():
    update = {"old logits": 1.0, "interruption": 2.0, "waiting for old logits": 4.0}
    assert _price({**update, "training": 50.0}) == 7.0


def test_a_long_run_is_shown_from_its_end():
    spans = [["learner 0", "training", 10.0 * n, 10.0 * n + 5] for n in range(12)]
    rows = [{"timeline": [span]} for span in spans]
    section = timeline_section([Group("all", [run_of(*rows)])])
    assert list(section.figure.layout.xaxis.range) == [75.0, 115.0]
