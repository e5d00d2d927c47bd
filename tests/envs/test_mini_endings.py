"""How a bundled dialogue ends, and what its checks accept; each with its neighbour."""

import json

import pytest

from rllib_llm_async.envs.mini.domain import Domain, text_message, tool_message
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite


def started(**config):
    suite = MiniMixtureSuite(["airline"], **config)
    env = suite.make()
    env.reset_now(suite.tasks("train")[0])
    return env


def call(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"id": "x", "function": function}]}


@pytest.fixture
def all_checks_hold(monkeypatch):
    """Whatever was done: how the dialogue ended must decide alone."""
    monkeypatch.setattr(Domain, "verdict", lambda self: {"state": 1.0})


def test_running_out_of_turns_truncates_and_earns_nothing(all_checks_hold):
    env = started(max_turns=3)
    question = tool_message("get_res", id="r999")
    for _ in range(2):
        step = env.step_now(question)
        assert not step.terminated and not step.truncated and step.reward == 0.0
    step = env.step_now(question)
    assert (step.truncated, step.terminated, step.reward) == (True, False, 0.0)
    assert step.info["reason"] == "max_turns" and not step.info["success"]


def test_the_last_turn_may_still_bring_success(all_checks_hold):
    env = started(max_turns=2)
    env.step_now(tool_message("get_res", id="r999"))
    step = env.step_now(text_message("done."))
    assert (step.truncated, step.terminated, step.reward) == (False, True, 1.0)
    assert step.info["reason"] == "user_stop" and step.info["success"]


def test_the_fourth_tool_error_ends_the_dialogue_without_success(all_checks_hold):
    env = started()
    nameless = call("", '{"name": "get_res", "parameters": {"id": "r1"}}')
    bad = [call("nothing", "{}"), call("get_res", "{}"), nameless]
    for message in bad:
        assert not env.step_now(message).terminated
    step = env.step_now(call("get_res", "[]"))
    assert (step.truncated, step.terminated, step.reward) == (False, True, 0.0)
    assert step.info["reason"] == "too_many_tool_errors"
    # What has no name could not be read, and "[]" is no object; an unknown name and a
    # lack of arguments are mistakes of another kind.
    assert step.info["num_malformed_tool_calls"] == 2


@pytest.mark.parametrize(
    ("said", "is_told"),
    [
        ("done, refund $20.", True),
        ("$20 refund, done", True),
        ("done, refund $200.", False),
        ("done, refund $20.50", False),
        ("done, refund $20x", False),
        ("done, refund a$20", False),
        ("done, refund 20", False),
        ("done, refund $20 or $30", False),
        ("done or kept, refund $20.", False),
        ("abandoned, refund $20.", False),
    ],
)
def test_a_result_is_named_in_whole_words_and_alone(said, is_told):
    task = started().episode
    task.must_say, task.results = [{"outcome": "done", "amount": "$20"}], [said]
    assert task.has_communicated() == is_told


@pytest.mark.parametrize(
    ("text", "agreed"),
    [
        ("confirm cancel r123?", {"action": "cancel", "id": "r123"}),
        ("economy, 5 of 20. do you confirm that we cancel r123?", None),
        ("confirm? cancel r123.", {}),
        ("confirm cancel r123 or r124?", {}),
        ("confirm cancel r1234?", {}),
        ("confirm cancel r123. confirm r124?", {}),
        ("shall i cancel r123?", {}),
    ],
)
def test_a_yes_is_to_the_one_sentence_that_names_the_change(text, agreed):
    suite = MiniMixtureSuite(["airline"])
    env = suite.make()
    env.reset_now(suite.tasks("train")[0])
    task = env.episode
    task.wants, task.reservation_id, task.agrees = "cancel", "r123", True
    env.step_now(text_message(text))
    expected = {"action": "cancel", "id": "r123"} if agreed is None else agreed
    assert task.agreed == expected
    env.step_now(text_message("thank you."))
    assert not task.agreed


def test_a_reward_is_all_checks_and_only_at_the_end():
    env = started()
    step = env.step_now(tool_message("get_res", id="r999"))
    assert step.reward == 0.0 and step.info == {}
    step = env.step_now(text_message("done."))
    verdict = step.info["reward_breakdown"]
    assert step.reward == float(all(verdict.values())) == 0.0
    assert 0 < sum(verdict.values()) < len(verdict) or not any(verdict.values())
    json.dumps(step.info)
