"""mini_tau2: solvable, not by constants, and not to be broken by bad messages."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.envs.mini_tau2.demonstrations import demonstrate
from rllib_llm_async.envs.mini_tau2.domain import text_message, tool_message
from rllib_llm_async.envs.mini_tau2.suite import DOMAINS, MiniTau2Suite
from rllib_llm_async.envs.registry import make_suite


@pytest.fixture(params=sorted(DOMAINS))
def suite(request):
    return MiniTau2Suite([request.param])


def success_rate(suite, tasks, **kwargs):
    return sum(demonstrate(suite, task, **kwargs).success for task in tasks) / len(
        tasks
    )


def test_perfect_demonstrator_always_succeeds_and_an_erring_one_does_not(suite):
    tasks = suite.tasks("train")[:300] + suite.tasks("test")[:200]
    assert success_rate(suite, tasks) == 1.0
    assert 0.4 < success_rate(suite, tasks, shortcut_rate=0.4) < 0.8
    assert 0.4 < success_rate(suite, tasks, slip_rate=0.4) < 0.8


@pytest.mark.parametrize(
    "text",
    ["done.", "sorry, cannot cancel.", "ok, kept.", "done cannot kept $0 $20 confirm?"],
)
def test_constant_policies_score_zero(suite, text):
    for task in suite.tasks("test")[:100]:
        env = suite.make()
        env.reset_now(task)
        step = env.step_now(text_message(text))
        while not (step.terminated or step.truncated):
            step = env.step_now(text_message(text))
        assert step.reward == 0.0


def test_splits_share_no_content_and_tasks_are_reproducible(suite):
    train = {suite.build(t).signature() for t in suite.tasks("train")}
    test = {suite.build(t).signature() for t in suite.tasks("test")}
    assert len(train) > 3900 and not train & test
    task = suite.tasks("test")[5]
    assert suite.build(task).signature() == suite.build(task).signature()


def test_writing_without_confirmation_scores_zero():
    suite = MiniTau2Suite(["airline"])
    task = next(
        t
        for t in suite.tasks("train")
        if suite.build(t).wants_cancel and suite.build(t).must_say == ["done"]
    )
    env = suite.make()
    env.reset_now(task)
    reservation = env.episode.reservation_id
    env.step_now(tool_message("get_res", id=reservation))
    env.step_now(tool_message("cancel", id=reservation))
    step = env.step_now(text_message("done."))
    assert step.info["reward_breakdown"] == {
        "state": 1.0,
        "communicate": 1.0,
        "policy": 0.0,
    }
    assert step.reward == 0.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
calls = st.builds(
    lambda name, arguments: {
        "id": "x",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    st.sampled_from(["get_res", "cancel", "add_bags", "", "__init__", "policy"]),
    st.text(max_size=20)
    | json_values.map(lambda v: __import__("json").dumps(v))
    | st.just("[" * 5000)
    | st.just('{"id": "r1"}'),
)
messages = st.builds(text_message, st.text(max_size=30)) | st.builds(
    lambda c: {"role": "assistant", "content": None, "tool_calls": c},
    st.lists(calls, min_size=1, max_size=3),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(messages, min_size=12, max_size=12), st.integers(0, 255))
def test_no_message_raises_or_scores(agent_messages, number):
    suite = MiniTau2Suite(["airline"])
    env = suite.make()
    env.reset_now(suite.tasks("test")[number])
    for message in agent_messages:
        step = env.step_now(message)
        assert len(step.messages) == len(message.get("tool_calls") or [1])
        if step.terminated or step.truncated:
            break
    assert step.reward == 0.0 and (step.terminated or step.truncated)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini_tau2'"):
        make_suite("mini_tao2", {})
    with pytest.raises(ValueError, match="did you mean 'airline'"):
        make_suite("mini_tau2", {"domains": ["airlines"]})
    with pytest.raises(ValueError, match=r"env_config of 'mini_tau2'.*domain"):
        make_suite("mini_tau2", {"domain": "airline"})


def test_the_user_alone_takes_time_to_answer(monkeypatch):
    suite = MiniTau2Suite(["airline"], user_seconds=2.0)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def play():
        env = suite.make()
        await env.reset(suite.tasks("test")[0])
        await env.step(tool_message("get_res", id="r1"))
        assert slept == []
        for _ in range(2):
            await env.step(text_message("what is the reservation id?"))

    asyncio.run(play())
    assert len(slept) == 2 and all(1.0 <= seconds <= 3.0 for seconds in slept)
    with pytest.raises(ValueError, match="user_seconds: got -1"):
        MiniTau2Suite(["airline"], user_seconds=-1)
