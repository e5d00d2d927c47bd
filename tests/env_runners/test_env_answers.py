"""What an environment may answer; the rest ends a try with what was wrong."""

import asyncio

import numpy as np
import pytest
import torch

from rllib_llm_async.env_runners.env_answers import checked_start, checked_step
from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome, mean_results
from rllib_llm_async.envs.agent_env import (
    BadRewardError,
    EpisodeError,
    Start,
    Step,
    TaskRef,
)
from tests.env_runners.test_one_episode import MAX_ENV_RETRIES, Env, ends, play


def last(**info):
    return Step([], 1.0, True, info=info)


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (None, "step .* None"),
        ({"reward": 1.0}, "step .* not a Step"),
        (Step(None), "messages .* None, not a list"),
        (Step("hello"), "messages .* 'hello'"),
        (Step([], terminated="no"), "terminated .* 'no', not true or false"),
        (Step([], truncated=None), "truncated .* None"),
        (Step([], info=None), "info .* None, not a mapping"),
        (last(success="no"), "success.* 'no', not true or false"),
        (last(success=0.5), r"success.* 0\.5"),
        (last(success=None), "success.* None"),
        (last(success=np.ones(2)), "success.* not true or false"),
        (last(reward_breakdown={"judge": 10**400}), "judge.* not a finite number"),
        (last(reward_breakdown={"judge": np.ones(2)}), "judge.* not a finite number"),
        (last(domain=["shop"]), "domain.* not a str"),
        (last(reason=None), "reason.* None"),
        (last(reward_breakdown=None), "reward_breakdown.* None, not a mapping"),
        (last(reward_breakdown={"judge": "n/a"}), "judge.* 'n/a', not a finite number"),
        (last(reward_breakdown={"judge": float("nan")}), "judge.* nan"),
        (last(reward_breakdown={1: 1.0}), "key .* 1, not a str"),
        (last(num_malformed_tool_calls=None), "num_malformed_tool_calls.* None"),
        (last(num_malformed_tool_calls=-1), "-1, not a count"),
        (last(num_malformed_tool_calls=1.5), r"1\.5, not a count"),
    ],
)
def test_a_wrong_answer_is_an_error_of_the_episode(step, named):
    with pytest.raises(EpisodeError, match=named):
        checked_step(step)
    (error,), player, _, failures = play(*[[lambda s=step: answer(s)]] * 3)
    assert error.reason == "env_failure" and player.transcripts == {}
    assert len(failures) == MAX_ENV_RETRIES + 1


async def answer(step):
    return step


@pytest.mark.parametrize("reward", [None, "1", float("inf"), np.ones(2)])
def test_a_reward_is_a_finite_number(reward):
    with pytest.raises(BadRewardError):
        checked_step(Step([], reward))


@pytest.mark.parametrize(
    ("start", "named"),
    [
        (None, "reset .* None"),
        (Start(None, []), "messages"),
        (Start([], None), "tools .* None, not a list"),
        (Start([], [], None), "info"),
        (Start([], [], {"domain": 7}), "domain.* 7"),
    ],
)
def test_a_wrong_start_is_an_error_of_the_episode(start, named):
    with pytest.raises(EpisodeError, match=named):
        checked_start(start)


def test_tuples_are_lists():
    start = checked_start(Start(({"role": "user", "content": "hi"},), ()))
    assert type(start.messages) is type(start.tools) is list
    assert checked_step(Step(())).messages == []


def test_numbers_of_numpy_and_torch_become_plain_ones():
    step = checked_step(
        Step(
            [],
            np.float32(0.5),
            np.True_,
            np.int64(0),
            {
                "success": np.bool_(True),
                "num_malformed_tool_calls": np.int64(2),
                "reward_breakdown": {
                    "a": np.float32(0.5),
                    "b": torch.tensor(True),
                    "c": None,
                },
                "more": [1],
            },
        )
    )
    assert (type(step.reward), step.terminated, step.truncated) == (float, True, False)
    assert step.info == {
        "success": True,
        "num_malformed_tool_calls": 2,
        "reward_breakdown": {"a": 0.5, "b": True, "c": None},
        "more": [1],
    }
    types = map(type, step.info["reward_breakdown"].values())
    assert [*types] == [float, bool, type(None)]


def test_a_checked_verdict_can_be_summed_up():
    ((_, outcome),), *_ = play(
        [ends(success=np.True_, reward_breakdown={"a": np.float32(0.5), "b": False})]
    )
    assert isinstance(outcome, EpisodeOutcome) and outcome.success is True
    assert outcome.rubric_score == 0.25
    assert mean_results([outcome])["success_rate"] == 1.0


def test_environments_that_cannot_be_made_are_tried_again_and_given_up():
    def player_with(make):
        suite = type("Suite", (), {"make": lambda self: make()})()
        _, player, *_ = play([ends()])
        player._suite = suite
        return player

    def fails():
        raise OSError("too many open files")

    player = player_with(fails)
    with pytest.raises(EpisodeError, match="too many open files"):
        asyncio.run(player.play(TaskRef("suite", "7", "train")))
    made = iter([fails, fails, lambda: Env([ends()])])
    player = player_with(lambda: next(made)())
    _, outcome = asyncio.run(player.play(TaskRef("suite", "7", "train")))
    assert outcome.success
