"""The sentences that the page begins with, and the advice among them."""

from pathlib import Path

import pytest

from rllib_llm_async.report.groups import Group
from rllib_llm_async.report.load import Run
from rllib_llm_async.report.opening import opening
from rllib_llm_async.report.page import render_page


def make_run(*, success=(0.4, 0.6), mask=0.99, clip=0.02, waiting=4.0, generating=9.0):
    """Iterations of 10 s: the driver waits for episodes, then for the update."""
    rows = [
        {
            "training_iteration": number + 1,
            "time_total_s": 10.0 * (number + 1),
            "env_runners/success_rate": value,
            "learners/default_policy/train_infer_mask": mask,
            "learners/default_policy/ppo_clip_fraction": clip,
            "phase_seconds/driver/waiting_for_episodes": waiting,
            "phase_seconds/driver/waiting_for_the_update": 10 - waiting,
            "phase_seconds/engine/generating": generating,
            "timeline": [
                ["driver", "waiting for episodes", 0.0, waiting],
                ["driver", "waiting for the update", waiting, 10.0],
                ["engine 0", "generating", 0.0, generating],
            ],
        }
        for number, value in enumerate(success)
    ]
    return Run(Path("results/mine/trial"), rows, {"eps_ti": 1.2}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Nothing stands out"),
        ({"success": (0.8, 0.4)}, "success fell by 0.400 from its peak"),
        ({"mask": 0.75}, "the mask drops 25.0 % of the tokens"),
        ({"clip": 0.0}, "the clip never acts"),
        ({"waiting": 8.0}, "learners wait for episodes in 80.0 % of the time"),
        ({"waiting": 1.0, "generating": 2.0}, "update for 90.0 % of the time"),
        ({"waiting": 1.0}, "Nothing stands out"),  # both are busy
        ({"success": (0.8, 0.4), "mask": 0.5, "waiting": 9.0}, "success fell"),
    ],
)
def test_the_most_pressing_advice_comes_last(changes, words):
    sentences = opening([Group("all", [make_run(**changes)], "#0072B2")])
    assert len(sentences) == 3 and words in sentences[-1]
    assert sentences[0].startswith("Success ") and "mask keeps" in sentences[1]


def test_several_groups_are_named_and_their_settings_compared():
    slow = make_run(waiting=9.0)
    slow.settings = {"eps_ti": 1.5, "engine": {"dtype": "float32"}}
    groups = [Group("fast", [make_run()]), Group("slow", [slow])]
    assert "slow: learners wait" in opening(groups)[-1]
    page = render_page(groups)
    for text in ("slow: learners wait", "engine.dtype", "<code>1.5</code>"):
        assert text in page


def test_a_run_without_an_episode_still_has_a_page():
    run = Run(Path("results/mine/trial"), [{"training_iteration": 1}], {}, {})
    assert "Nothing stands out" in render_page([Group("all", [run])])
