"""The vita suite plays and judges as the package's own synchronous code does."""

import asyncio
import json
import random
import re
import zlib

import pytest

from tests.envs.vita_players import (
    STOP,
    make_vita,
    play,
    reference_turns,
    rubrics_in,
    text,
    tools,
)

pytest.importorskip("vita", reason="needs the VitaBench package")


def talkative_user(messages):
    return f"reply {len(messages)} to {messages[-1]['content']!r}"


def moody_judge(messages):
    """Rubrics changed at random, in the ways that real judges write them down."""
    rng = random.Random(zlib.crc32(without_order_ids(messages).encode()))
    rubrics = rubrics_in(messages)
    for rubric in rubrics:
        rubric["justification"] += f" [{rng.randrange(9)}]"
        rubric["meetExpectation"] = rng.choice([True] * 40 + ["true", "false", False])
        if rng.random() < 0.1:
            del rubric[rng.choice(["rubric", "justification"])]
    written = json.dumps(rubrics, ensure_ascii=False, indent=2)
    return rng.choice(
        [written, f"```json\n{written}\n```", written.removesuffix("\n]")]
    )


class PackageModels:
    """Stands for `vita.utils.llm_utils.generate`, for agent, user and judge."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = {name: [] for name in answers}
        self.tools = None

    def generate(self, model, messages, tools=None, **kwargs):
        from vita.data_model.message import AssistantMessage, ToolCall
        from vita.utils.llm_utils import format_messages

        prompt = [
            {key: value for key, value in message.items() if value is not None}
            for message in format_messages(messages)
        ]
        self.asked[model].append(prompt)
        if model == "agent":
            self.tools = [tool.openai_schema for tool in tools]
        said = self.answers[model](prompt)
        if isinstance(said, str):
            said = text(said)
        calls = [
            ToolCall(
                id=call["id"],
                name=call["function"]["name"],
                arguments=json.loads(call["function"]["arguments"]),
            )
            for call in said.get("tool_calls", [])
        ]
        return AssistantMessage(
            role="assistant",
            content=said["content"],
            tool_calls=calls or None,
            cost=0.0,
            usage={},
        )


@pytest.fixture
def run_package(monkeypatch):
    def run(domain, task, language, answers, max_steps=300):
        from vita.run import _run_task_internal

        from rllib_llm_async.envs.vita.isolation import Compartment

        models = PackageModels(answers)
        for module in ("vita.agent.llm_agent", "vita.user.user_simulator"):
            monkeypatch.setattr(f"{module}.generate", models.generate)
        monkeypatch.setattr("rllib_llm_async.envs.vita.judge.generate", models.generate)
        # Else it would also know the addresses of earlier tasks.
        with Compartment(language) as compartment:
            result = _run_task_internal(
                domain,
                task,
                "llm_agent",
                "user_simulator",
                llm_agent="agent",
                llm_args_agent={},
                llm_user="user",
                llm_args_user={},
                max_steps=max_steps,
                llm_evaluator="judge",
                llm_args_evaluator={},
                language=language,
            )
        compartment.discard()
        return result, models

    return run


def without_order_ids(value):
    """New ids hash the clock."""
    return re.sub(r"\b(OT|OI)[0-9a-f]{10}\b", "NEW", repr(value))


def agent_turns(suite, ref):
    """Reads, mistakes, two calls at once, the reference orders, and small talk."""
    domain, task = suite.task(ref)
    environment = task.environment
    stores = environment.get("stores") or environment.get("shops")
    store_id, store = next(iter(stores.items()))
    address = store["location"]["address"]
    search = {
        "delivery": "delivery_product_search_recommand",
        "instore": "instore_product_search_recommend",
    }[domain]
    orders = reference_turns(suite, ref)[1:-1] if domain == "delivery" else []
    user = {"user_id": environment["user_id"]}
    return [
        text("how can I help?"),
        tools((search, {"keywords": ["rice", "tea"]}), ("get_user_all_orders", {})),
        tools(("address_to_longitude_latitude", {"address": address})),
        tools(("delivery_distance_to_time", {"distance": 1234.5})),
        tools(("delivery_distance_to_time", {"distance": "1234"})),
        tools(("no_such_tool", {"a": None, "b": [1.5, {"c": True}]})),
        tools(("get_user_all_orders", {"requestor": "user"})),
        tools(("get_nearby", {"longitude": 1.0, "latitude": 2.0, "range": 1e8})),
        tools(("instore_reservation", {**user, "shop_id": store_id, "time": "now"})),
        tools(("get_holiday_date", {"year": "2024", "holiday_name": "Qixi Festival"})),
        *orders,
        text("anything else?"),
        {**tools(("get_user_all_orders", {})), "content": "let me look."},
        text(f"goodbye {STOP}"),
    ]


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_conversation_prompts_and_reward_are_the_packages(run_package, language):
    domains = ["delivery", "instore"] if language == "english" else ["delivery"]
    suite = make_vita(talkative_user, moody_judge, domains=domains, language=language)
    refs = random.Random(1).sample(suite.tasks("train"), 15)
    rewards = []
    for ref in refs:
        domain, task = suite.task(ref)
        turns = agent_turns(suite, ref)
        for model in suite.models.values():
            model.asked.clear()
        start, steps = asyncio.run(play(suite.make(), ref, turns))
        script = iter(turns)
        answers = {
            "agent": lambda prompt, script=script: next(script),
            "user": talkative_user,
            "judge": moody_judge,
        }
        result, package = run_package(domain, task, language, answers)
        history = list(start.messages)
        for turn, step in zip(turns, steps):
            history += [turn, *step.messages]
        # The package adds the tool's name to calls and answers.
        prompt = package.asked["agent"][-1]
        assert [m["role"] for m in prompt] == [m["role"] for m in history[:-1]]
        assert without_order_ids([m.get("content") for m in prompt]) == (
            without_order_ids([m["content"] for m in history[:-1]])
        )
        assert package.tools == start.tools
        assert package.asked["user"] == suite.models["user"].asked
        ours, theirs = suite.models["judge"].asked, package.asked["judge"]
        assert without_order_ids(ours) == without_order_ids(theirs)
        rewards.append(steps[-1].reward)
        assert steps[-1].reward == result.reward_info.reward
        assert [steps[-1].info["reward_breakdown"]["rubric_score"]] == list(
            result.reward_info.reward_breakdown.values()
        )
    assert set(rewards) == {0.0, 1.0}


@pytest.mark.parametrize("last", [text("goodbye"), text(f"goodbye {STOP}"), "call"])
def test_the_last_turn_is_answered_by_nobody_as_in_the_package(run_package, last):
    """Three turns are six steps: the user's and the agent's by turns."""
    if last == "call":
        last = tools(("get_user_all_orders", {}))
    suite = make_vita(talkative_user, moody_judge, domains=["delivery"], max_turns=3)
    ref = suite.tasks("train")[0]
    domain, task = suite.task(ref)
    turns = [text("how can I help?"), tools(("get_user_all_orders", {})), last]
    _, steps = asyncio.run(play(suite.make(), ref, turns))
    script = iter(turns)
    answers = {"agent": lambda prompt: next(script), "user": talkative_user}
    result, package = run_package(
        domain, task, "english", {**answers, "judge": moody_judge}, max_steps=6
    )
    assert steps[-1].truncated and steps[-1].messages == []
    assert steps[-1].info["reason"] == "max_turns"
    assert result.termination_reason == "max_steps"
    assert steps[-1].reward == result.reward_info.reward == 0.0
    assert suite.models["user"].asked == package.asked["user"]
    assert suite.models["judge"].asked == package.asked["judge"] == []
