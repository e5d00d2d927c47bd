"""The domain `banking_knowledge` of tau2-bench, whose agent searches documents."""

import asyncio
import json
import re
import time

import pytest

from rllib_llm_async.envs.registry import make_suite
from tests.envs.tau2_agents import ENDPOINT, call, make, play, reference_turns

pytest.importorskip("tau2.registry", reason="tau2-bench is not installed")

DOMAIN = "banking_knowledge"
#: A tool that the agent has to unlock, and one that only reads.
WRITES, READS = "close_bank_account_7392", "get_all_user_accounts_by_user_id_3847"


def unlock(tool):
    return call("unlock_discoverable_agent_tool", {"agent_tool_name": tool})


def use(tool, arguments):
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return call(
        "call_discoverable_agent_tool", {"agent_tool_name": tool, "arguments": written}
    )


async def answers(env, *messages):
    """What the tools say, one call per message."""
    steps = [await env.step(message) for message in messages]
    return [step.messages[0]["content"] for step in steps]


def uses_of(suite, task):
    """The discoverable tools that the reference calls."""
    actions = suite.find(task)[1].evaluation_criteria.actions or []
    return [
        action.arguments["agent_tool_name"]
        for action in actions
        if action.name == "call_discoverable_agent_tool"
    ]


@pytest.mark.parametrize("variant", ["golden_retrieval", "bm25_grep", "no_knowledge"])
def test_policy_and_tools_are_those_of_the_package(variant):
    from tau2.registry import registry

    suite = make(DOMAIN, retrieval_variant=variant)
    construct = registry.get_env_constructor(DOMAIN)
    policies = set()
    for task in suite.tasks("base")[::32]:
        start = asyncio.run(suite.make().reset(task))
        theirs = construct(retrieval_variant=variant, task=suite.find(task)[1])
        assert theirs.get_policy() in start.messages[0]["content"]
        assert start.tools == [tool.openai_schema for tool in theirs.get_tools()]
        policies.add(theirs.get_policy())
    assert len(policies) == (4 if variant == "golden_retrieval" else 1)


def test_searches_find_what_the_package_finds():
    from tau2.registry import registry

    suite = make(DOMAIN)
    theirs = registry.get_env_constructor(DOMAIN)(retrieval_variant="bm25_grep")
    messages = [
        call("KB_search", {"query": "annual fee of the gold rewards card"}),
        call("KB_search", {"query": "?"}),
        call("grep", {"pattern": r"\b(un)?freeze_\w+_\d{4}"}),
        call("grep", {"pattern": "a{2"}),
        call("grep", {"pattern": "(no group"}),
    ]

    async def search():
        env = suite.make()
        await env.reset(suite.tasks("base")[0])
        return await answers(env, *messages)

    for message, found in zip(messages, asyncio.run(search()), strict=True):
        function = message["tool_calls"][0]["function"]
        expected = theirs.make_tool_call(
            function["name"], **json.loads(function["arguments"])
        )
        without_timing = [re.sub(r"\[Timing.*", "", t) for t in (found, expected)]
        assert without_timing[0] == without_timing[1]


def test_documents_are_shared_and_databases_are_not():
    suite = make(DOMAIN)
    domain, task = suite.find(suite.tasks("base")[0])
    first, second = (domain.make_environment(task, solo=False) for _ in range(2))
    assert first.tools._kb_pipeline is second.tools._kb_pipeline
    assert first.tools._grep_pipeline is second.tools._grep_pipeline
    assert first.tools.db is first.user_tools.db is not second.tools.db


def test_a_tool_is_discovered_in_one_episode_only():
    suite = make(DOMAIN)
    locked = f"Error: Tool '{READS}' has not been unlocked."

    async def play_both():
        task = suite.tasks("base")[0]
        one, other = suite.make(), suite.make()
        await one.reset(task)
        await other.reset(task)
        assert (await answers(one, use(READS, {})))[0].startswith(locked)
        _, found = await answers(one, unlock(READS), use(READS, {"user_id": "x"}))
        assert not found.startswith(locked)
        assert (await answers(other, use(READS, {})))[0].startswith(locked)
        await one.reset(task)
        assert (await answers(one, use(READS, {})))[0].startswith(locked)

    asyncio.run(play_both())


def test_only_reads_that_the_reference_takes_count():
    suite = make(DOMAIN, retrieval_variant="no_knowledge")
    tasks = suite.tasks("base")
    needing = next(task for task in tasks if READS in uses_of(suite, task))
    indifferent = next(
        task
        for task in tasks
        if READS not in uses_of(suite, task) and WRITES in uses_of(suite, task)
    )
    turns = [
        turn
        for turn in reference_turns(suite.find(needing)[1])
        if READS not in str(turn) or "unlock" in str(turn)
    ]
    step, official = asyncio.run(play(suite, needing, turns))
    assert step.reward == official == 0.0
    turns = reference_turns(suite.find(indifferent)[1])
    further = [unlock(READS), use(READS, {"user_id": "x"})]
    step, official = asyncio.run(play(suite, indifferent, further + turns))
    assert step.reward == official == 1.0


def test_json_within_arguments_cannot_harm():
    suite = make(DOMAIN)
    deep = '{"reason": ' + "[" * 500 + "]" * 500 + "}"

    async def talk():
        env = suite.make()
        await env.reset(suite.tasks("base")[0])
        return await answers(
            env,
            unlock(WRITES),
            use(WRITES, r'{"account_id": "\ud800"}'),
            use(WRITES, deep),
            use(WRITES, "[" * 9000),
            use(WRITES, "{"),
            use(WRITES, "[1]"),
        )

    unlocked, *errors = asyncio.run(talk())
    assert not unlocked.startswith("Error")
    assert all(error.startswith("Error: ") for error in errors)
    assert "not encodable" in errors[0] and "nested too deep" in errors[1]


def test_a_long_search_keeps_nobody_waiting(monkeypatch):
    suite = make(DOMAIN)
    monkeypatch.setattr(
        "rllib_llm_async.envs.tau2.knowledge.count_matches",
        lambda pattern, texts: time.sleep(0.5) or {},
    )
    slow = {"pattern": "card"}

    async def search():
        env = suite.make()
        await env.reset(suite.tasks("base")[0])
        searching = asyncio.create_task(answers(env, call("grep", slow)))
        ticks = 0
        while not searching.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, searching.result()[0]

    ticks, found = asyncio.run(search())
    assert ticks > 5
    assert found == "No matches found for pattern: card"


def test_no_task_is_passed_by_doing_nothing():
    suite = make(DOMAIN, retrieval_variant="no_knowledge")
    for task in suite.tasks("base"):
        start = asyncio.run(suite.make().reset(task))
        assert start.info == {"domain": DOMAIN, "no_write": False}


@pytest.mark.parametrize(
    ("env_config", "message"),
    [
        (
            {"retrieval_variant": "bm52"},
            r"'bm52' is unknown; valid: no_knowledge, full",
        ),
        ({"retrieval_variant": ["bm25"]}, r"\['bm25'\] is unknown; valid: "),
        ({"retrieval_variant": "qwen_embeddings"}, "needs an embedding service"),
        ({"retrieval_variant": "bm25_reranker"}, "needs a reranking service"),
        ({"retrieval_variant": "terminal_use"}, "needs a shell for the agent"),
        ({"retrieval_variant": "alltools"}, "needs an embedding service"),
        (
            {"retrieval_variant": "bm25", "domains": ["mock"]},
            r"got 'bm25', but only domain 'banking_knowledge' has documents",
        ),
    ],
)
def test_bad_variants_are_one_line(env_config, message):
    env_config = {"domains": [DOMAIN], "user": ENDPOINT, **env_config}
    with pytest.raises(ValueError, match=message) as error:
        make_suite("tau2", {"judge": ENDPOINT, "train_split": "base", **env_config})
    assert str(error.value).startswith("env_config.retrieval_variant: ")
    assert "\n" not in str(error.value)


def test_a_missing_index_package_is_one_line(monkeypatch):
    from tau2.domains.banking_knowledge import retrieval

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'rank_bm25'", name="rank_bm25")

    monkeypatch.setattr(retrieval, "create_bm25_retrieval_pipeline", fail)
    with pytest.raises(ValueError, match=r"'bm25' needs the package 'rank_bm25'"):
        make(DOMAIN, retrieval_variant="bm25")


def test_solo_mode_is_refused():
    with pytest.raises(ValueError, match="does not support solo mode"):
        make(DOMAIN, solo=True)
