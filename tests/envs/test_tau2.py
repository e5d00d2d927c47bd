"""The tau2 suite with the real package; docs/tau2.md says how to install it."""

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.registry import make_suite
from tests.envs.chat_stub import say
from tests.envs.tau2_agents import (
    BYE,
    ENDPOINT,
    KindJudge,
    call,
    make,
    play,
    reference_turns,
)

pytest.importorskip("tau2.registry", reason="tau2-bench is not installed")

#: Episodes that are compared with the package's evaluator, which takes 0.7 s for each.
NUM_COMPARED = {
    "retail": 24,
    "telecom": 10,
    "airline": 20,
    "mock": 10,
    "banking_knowledge": 20,
}
#: Where the package, too, gives its own reference actions a reward of 0.
UNSOLVABLE = {
    "mock/update_task_with_user_tools",
    "mock/update_task_with_history_and_env_assertions",
}
UNSOLVABLE_SOLO = {
    "mock/update_task_with_user_tools",
    "mock/update_task_with_initialization_data",
}


@pytest.fixture(params=sorted(NUM_COMPARED))
def suite(request):
    return make(request.param)


@pytest.fixture
def official_judge(monkeypatch):
    """The package's own judge says yes, too."""
    from tau2.data_model.simulation import RewardInfo
    from tau2.evaluator.evaluator import NLAssertionsEvaluator

    monkeypatch.setattr(
        NLAssertionsEvaluator,
        "calculate_reward",
        lambda task, full_trajectory: RewardInfo(reward=1.0),
    )


def compared_tasks(suite):
    (domain,) = suite.domains
    return suite.tasks("base")[: NUM_COMPARED[domain]]


def test_reference_actions_get_the_full_reward(suite, official_judge):
    for task in compared_tasks(suite):
        turns = reference_turns(suite.find(task)[1])
        step, official = asyncio.run(play(suite, task, turns))
        assert step.reward == official == float(task.id not in UNSOLVABLE), task
        assert step.info["success"] == bool(step.reward)


def test_an_agent_that_does_nothing_gets_the_packages_verdict(suite, official_judge):
    for task in compared_tasks(suite):
        step, official = asyncio.run(play(suite, task, [BYE]))
        assert step.reward == official, task
        if step.reward:
            assert step.info["no_write"]


@pytest.mark.parametrize("domain", ["mock", "telecom"])
def test_solo_mode(domain):
    suite = make(domain, solo=True)
    for task in suite.tasks("base")[:7]:
        turns = reference_turns(suite.find(task)[1], solo=True)
        step, official = asyncio.run(play(suite, task, turns))
        assert step.reward == official == float(task.id not in UNSOLVABLE_SOLO), task
        step, official = asyncio.run(play(suite, task, [call("done", {})]))
        assert step.reward == official == 0.0
        step, official = asyncio.run(play(suite, task, [BYE]))
        assert (step.info["reason"], step.reward) == ("agent_error", 0.0)


def test_what_the_agent_begins_with():
    suite = make("retail")
    task = suite.tasks("test")[0]
    domain, chosen = suite.find(task)
    start = asyncio.run(suite.make().reset(task))
    assert [m["role"] for m in start.messages] == ["system", "assistant", "user"]
    assert domain._pristine.policy in start.messages[0]["content"]
    names = {tool["function"]["name"] for tool in start.tools}
    assert len(names) == 16 and "done" not in names
    asked = suite.user.conversations[0]
    assert [m["role"] for m in asked] == ["system", "user"]
    assert str(chosen.user_scenario) in asked[0]["content"]


def test_tasks_whose_reference_writes_nothing_are_told_apart():
    suite = make("retail")
    domains = []
    for task in suite.tasks("base"):
        domain, chosen = suite.find(task)
        domains.append(domain.goal(chosen)[1])
    assert domains.count(False) == 11 and len(domains) == 114


def test_splits_are_the_packages_own():
    suite = make("retail")
    assert len(suite.tasks("base")) == 114
    assert len(make("retail", train_split="train").tasks("train")) == 74
    test = {task.id for task in suite.tasks("test")}
    assert len(test) == 40
    with pytest.raises(ValueError, match=r"no tasks in 'validation', only in train"):
        suite.tasks("validation")


def test_the_agent_cannot_act_as_the_user():
    suite = make("telecom", solo=False)
    env = suite.make()

    async def forge():
        await env.reset(suite.tasks("base")[0])
        user_tool = env.orchestrator.environment.get_user_tools()[0].name
        message = call(user_tool, {})
        message["tool_calls"][0]["requestor"] = "user"
        step = await env.step(message)
        assert step.messages[0]["content"] == f"Error: Tool '{user_tool}' not found."
        step = await env.step(call(user_tool, {"requestor": "user"}))
        assert "requestor" in step.messages[0]["content"]
        assert all(c.requestor == "assistant" for c in agent_calls(env))

    asyncio.run(forge())


def agent_calls(env):
    for message in env.orchestrator.trajectory:
        if message.role == "assistant":
            yield from message.tool_calls or ()


def test_malformed_calls_are_answered_and_counted():
    suite = make("retail")
    env = suite.make()
    bad = [call("get_order_details", text) for text in ("{", "[]", '"x"', "[" * 9000)]
    bad.append(call("", {"name": "calculate", "parameters": {}}))

    async def talk():
        await env.reset(suite.tasks("test")[0])
        for message in bad:
            step = await env.step(message)
            assert step.messages[0]["role"] == "tool"
            assert step.messages[0]["content"].startswith("Error: malformed tool call")
        both = {
            "role": "assistant",
            "content": "text beside calls",
            "tool_calls": [
                call("calculate", {"expression": "9**9**9"}, 1)["tool_calls"][0],
                call("calculate", {"expression": "3*4"}, 2)["tool_calls"][0],
            ],
        }
        step = await env.step(both)
        assert [m["tool_call_id"] for m in step.messages] == ["call_1", "call_2"]
        assert step.messages[0]["content"].startswith("Error: ")
        assert step.messages[1]["content"] == "12.0"
        assert len(suite.user.conversations) == 1
        return await env.step(BYE)

    step = asyncio.run(talk())
    assert step.info["num_malformed_tool_calls"] == len(bad)
    assert step.info["reason"] == "user_stop"


def test_too_many_errors_and_too_many_steps():
    suite = make("retail", max_steps=30)

    async def repeat(message):
        env = suite.make()
        await env.reset(suite.tasks("test")[0])
        step = await env.step(message)
        while not (step.terminated or step.truncated):
            step = await env.step(message)
        return step

    step = asyncio.run(repeat(call("no_such_tool", {})))
    assert step.terminated and step.info["reason"] == "too_many_errors"
    step = asyncio.run(repeat({"role": "assistant", "content": "hm"}))
    assert step.truncated and not step.terminated and step.reward == 0.0
    step = asyncio.run(repeat({"role": "assistant", "content": " "}))
    assert step.terminated and step.info["reason"] == "agent_error"


def test_concurrent_episodes_share_no_state(official_judge):
    suite = make("retail")
    task = next(
        t for t in suite.tasks("base") if suite.find(t)[0].goal(suite.find(t)[1])[1]
    )
    turns = reference_turns(suite.find(task)[1])
    base = suite.domains["retail"]._pristine.get_db_hash()

    async def play_all():
        return await asyncio.gather(
            *(play(suite, task, turns if i % 2 else [BYE]) for i in range(6))
        )

    rewards = [step.reward for step, _ in asyncio.run(play_all())]
    assert rewards == [0.0, 1.0] * 3
    assert suite.domains["retail"]._pristine.get_db_hash() == base


@pytest.fixture
def judged_task():
    suite = make("retail")
    from rllib_llm_async.envs.tau2.rewards import needs_judge

    return suite, next(t for t in suite.tasks("base") if needs_judge(suite.find(t)[1]))


def test_the_judge_is_asked_only_when_the_rest_is_right(judged_task):
    suite, task = judged_task
    turns = reference_turns(suite.find(task)[1])

    async def run(turns):
        env = suite.make()
        await env.reset(task)
        for turn in turns:
            step = await env.step(turn)
        return step

    assert asyncio.run(run([BYE])).reward == 0.0
    assert suite.judge.num_calls == 0
    assert asyncio.run(run(turns)).reward == 1.0
    assert suite.judge.num_calls == 1
    suite.judge = KindJudge(met=False)
    step = asyncio.run(run(turns))
    assert step.reward == 0.0 and step.info["reward_breakdown"]["NL_ASSERTION"] == 0.0

    class Mumbler(KindJudge):
        async def complete(self, messages, tools=None, read=None):
            with pytest.raises(ValueError) as error:
                read({"role": "assistant", "content": "yes, all of them"})
            raise EpisodeError(str(error.value))

    suite.judge = Mumbler()
    with pytest.raises(EpisodeError, match="judge's answer cannot be read"):
        asyncio.run(run(turns))


def test_a_failing_user_is_no_failure_of_the_agent(chat_stub):
    endpoint = {**ENDPOINT, "base_url": chat_stub.url, "max_retries": 0}
    suite = make("retail", user=endpoint)
    suite.user = make_suite(
        "tau2", {"domains": ["retail"], "user": endpoint, "judge": ENDPOINT}
    ).user
    chat_stub.answers = [lambda body: 500]
    with pytest.raises(EpisodeError, match=r"env_config\.user"):
        asyncio.run(suite.make().reset(suite.tasks("base")[0]))
    assert suite.metrics()["user_failures_lifetime"] == 1
    bad = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
    chat_stub.answers = [
        lambda body: {"role": "assistant", "content": None, "tool_calls": [bad]}
    ]
    with pytest.raises(EpisodeError, match="user model gave a malformed tool call"):
        asyncio.run(suite.make().reset(suite.tasks("base")[0]))


def test_a_user_who_leaves_at_once_is_no_failure_of_the_agent(chat_stub):
    endpoint = {**ENDPOINT, "base_url": chat_stub.url}
    suite = make("retail")
    suite.user = make_suite(
        "tau2", {"domains": ["retail"], "user": endpoint, "judge": ENDPOINT}
    ).user
    chat_stub.answers = [say("###STOP###")]
    with pytest.raises(EpisodeError, match=r"ended before .*first turn \(user_stop\)"):
        asyncio.run(suite.make().reset(suite.tasks("base")[0]))


@pytest.mark.parametrize(
    ("env_config", "message"),
    [
        ({"domains": ["retial"]}, r"domains: unknown 'retial', did you mean 'retail'"),
        ({"domains": "retail"}, r"domains: got 'retail', must be a list"),
        ({"domains": ["retail"], "user": None}, r"env_config\.user: missing"),
        ({"domains": ["retail"], "judge": None}, r"env_config\.judge: missing; 40 ta"),
        ({"domains": ["retail"], "max_steps": 0}, r"env_config\.max_steps: got 0"),
        ({"domains": ["retail"], "solo": True}, r"env_config\.user: solo mode has no"),
        (
            {"domains": ["retail"], "solo": True, "user": None},
            r"'retail': Retail domain does not support solo mode",
        ),
        ({"domains": ["mock"]}, r"'mock' of tau2 has no tasks in 'train', only in bas"),
    ],
)
def test_bad_settings_are_one_line(env_config, message):
    with pytest.raises(ValueError, match=message) as error:
        make_suite("tau2", {"user": ENDPOINT, "judge": ENDPOINT, **env_config})
    assert "\n" not in str(error.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
ARGUMENT_NAMES = [
    *("order_id", "user_id", "customer_id", "line_id", "reservation_id", "task_id"),
    *("title", "expression", "requestor", "tool_name", "self"),
    *("pattern", "query", "customer_name", "agent_tool_name", "arguments"),
    "discoverable_tool_name",
]
ARGUMENT_VALUES = [
    *("#W2890441", "9**9**9", "C1001", "L1001", "task_1"),
    *("close_bank_account_7392", "get_referral_link", "(.*)*x{9}y", "(a{999}){999}"),
    *('{"account_id": "x"}', r'{"reason": "\ud800"}', '{"reason": ' * 40 + "}" * 40),
]
arguments = st.dictionaries(
    st.sampled_from(ARGUMENT_NAMES),
    json_values | st.sampled_from(ARGUMENT_VALUES),
    max_size=3,
)
texts = st.text(st.characters(), max_size=20)  # lone surrogates, too


@st.composite
def agent_messages(draw, tool_names):
    if draw(st.integers(0, 3)) == 0:
        return {"role": "assistant", "content": draw(texts)}
    messages = [
        call(
            draw(st.sampled_from(tool_names) | texts),
            draw(arguments | texts | st.just("[" * 5000) | st.just('{"a":' * 300)),
            number,
        )
        for number in range(draw(st.integers(1, 2)))
    ]
    calls = [message["tool_calls"][0] for message in messages]
    return {"role": "assistant", "content": draw(texts), "tool_calls": calls}


def test_no_message_raises_or_corrupts_the_database(suite):
    """250 episodes in each of 5 domains, up to 6 messages long."""
    (domain,) = suite.domains.values()
    before = domain._pristine.get_db_hash()

    @settings(deadline=None)
    @given(st.data())
    def play_anything(data):
        task = data.draw(st.sampled_from(compared_tasks(suite)))

        async def talk():
            env = suite.make()
            start = await env.reset(task)
            names = [tool["function"]["name"] for tool in start.tools]
            if domain.name == "banking_knowledge":
                names += domain._pristine.tools.get_discoverable_tools()
            for _ in range(6):
                message = data.draw(agent_messages(names))
                step = await env.step(message)
                if step.terminated or step.truncated:
                    assert math.isfinite(step.reward)
                    break
                assert len(step.messages) == len(message.get("tool_calls") or [1])
            await env.aclose()

        asyncio.run(talk())

    play_anything()
    assert domain._pristine.get_db_hash() == before
