"""The vita suite: scores, splits, faults, and episodes that do not meet."""

import asyncio
import functools
import importlib.util
import json
import random
import re
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.vita.order_match import required_orders
from rllib_llm_async.envs.vita.package import load_package
from tests.envs.vita_players import (
    ENDPOINT,
    STOP,
    all_tasks,
    make_vita,
    place_order,
    play,
    reference_turns,
    rubrics_in,
    stern_judge,
    text,
    tools,
)

# --- Without the package --------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_config", "message"),
    [
        ({"domains": ["delivry"]}, r"domains: unknown 'delivry', did you mean 'deliv"),
        ({"domains": "delivery"}, r"domains: got 'delivery', must be a list"),
        ({"language": "German"}, r"language: unknown 'German'.* Valid: english, chin"),
        ({"max_turns": 0}, r"max_turns: got 0, need 1 or more turns"),
        ({"user": None}, r"user: got None, must be a mapping with model, base_url"),
        ({"judge": "order_mach"}, r"judge: unknown 'order_mach', did you mean 'order_"),
        ({"judge": None}, r"judge: got None, must be a mapping with model"),
        ({"domains": None}, r"judge: order_match needs env_config.domains: \[delivery"),
        ({"judges": 1}, r"env_config.judges: .*'judge'"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_key(env_config, message):
    valid = {"domains": ["delivery"], "user": ENDPOINT, "judge": "order_match"}
    with pytest.raises(ValueError, match=message) as error:
        make_suite("vita", {**valid, **env_config})
    assert "\n" not in str(error.value)


@pytest.fixture
def not_imported():
    """The package's modules are imported anew, and afterwards are the old ones."""

    def take_out():
        names = [name for name in sys.modules if name.partition(".")[0] == "vita"]
        return {name: sys.modules.pop(name) for name in names}

    modules = take_out()
    yield
    take_out()
    sys.modules.update(modules)


@pytest.mark.parametrize("missing", ["vita", "vita.registry", "thefuzz"])
def test_what_is_not_installed_is_named(not_imported, monkeypatch, missing):
    if missing != "vita" and importlib.util.find_spec("vita") is None:
        pytest.skip("needs the VitaBench package")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ValueError, match=rf"{missing}.*see docs/vitabench\.md"
    ) as error:
        load_package.__wrapped__()
    assert "\n" not in str(error.value)


# --- With the package -----------------------------------------------------------------


def score(suite, turns_of):
    """Mean reward over all tasks, all played at once."""

    async def play_all():
        refs = all_tasks(suite)
        played = await asyncio.gather(
            *(play(suite.make(), ref, turns_of(ref)) for ref in refs)
        )
        return sum(steps[-1].reward for _, steps in played) / len(refs)

    return asyncio.run(play_all())


def test_the_reference_orders_score_and_doing_nothing_does_not():
    suite = make_vita()
    # Three references name products that do not exist.
    assert score(suite, lambda ref: reference_turns(suite, ref)) == pytest.approx(0.97)
    assert score(suite, lambda ref: [text(f"bye {STOP}")]) == 0.0


def test_splits_are_disjoint_and_the_same_in_both_languages():
    english, chinese = make_vita(), make_vita(language="chinese")
    train, test = english.tasks("train"), english.tasks("test")
    assert len(train) == 79 and len(test) == 21
    assert not {ref.id for ref in train} & {ref.id for ref in test}
    assert chinese.tasks("test") == test
    with pytest.raises(ValueError, match="split: unknown 'tests', did you mean 'test'"):
        english.tasks("tests")


def test_absent_data_is_named(monkeypatch, tmp_path):
    make_vita()
    monkeypatch.setattr("vita.utils.utils.DOMAIN_DIR", tmp_path)
    with pytest.raises(
        ValueError, match=r"no english tasks of 'delivery': .*is absent"
    ):
        make_vita()


def test_domains_whose_data_come_apart_from_the_package(monkeypatch, tmp_path):
    # Tasks made of a delivery and an instore task stand in for those of the benchmark.
    suite = make_vita(judge=stern_judge, domains=["delivery", "instore"])
    delivery, instore = (
        next(suite.task(ref)[1] for ref in all_tasks(suite) if ref.id.startswith(d))
        for d in suite.domains
    )
    merged = delivery.model_dump()
    merged["environment"] = {**instore.environment, **delivery.environment}
    for domain in ("cross_domain", "ota"):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / "tasks_en.json").write_text(json.dumps([merged]))
    monkeypatch.setattr("vita.utils.utils.DOMAIN_DIR", tmp_path)
    suite = make_vita(judge=stern_judge, domains=["ota", "cross_domain"])
    # The counts of the benchmark's README.
    assert len(suite.tool_schemas("ota")) == 38
    assert len(suite.tool_schemas("cross_domain")) == 66
    ota, cross = all_tasks(suite)
    user = {"user_id": merged["environment"]["user_id"]}
    shop = {"shop_id": next(iter(instore.environment["shops"]))}
    reference = required_orders(delivery)[0][0]
    calls = [
        ("instore_reservation", {**user, **shop, "time": "2025-11-07 17:30:00"}),
        place_order(delivery, reference),
        ("search_instore_reservation", user),
        ("get_user_all_orders", {}),
    ]
    _, steps = asyncio.run(play(suite.make(), cross, [tools(*calls), text(STOP)]))
    answers = [message["content"] for message in steps[0].messages]
    assert shop["shop_id"] in answers[2] and reference["store_id"] in answers[3]
    assert steps[1].info["num_tool_errors"] == 0
    assert ended_by(suite, [text(STOP)], ota) == ("agent_stop", 0.0)


def ended_by(suite, turns, ref=None):
    ref = ref or suite.tasks("train")[0]
    _, steps = asyncio.run(play(suite.make(), ref, turns))
    last = steps[-1]
    assert last.terminated != last.truncated and len(steps) == len(turns)
    return last.info["reason"], last.reward


def test_every_way_to_end():
    suite = make_vita(max_turns=3)
    for marker in (STOP, "###TRANSFER###", "###OUT-OF-SCOPE###"):
        stops = make_vita(
            user=lambda messages, m=marker: m if len(messages) > 2 else "hi"
        )
        assert ended_by(stops, [text("hello")]) == ("user_stop", 0.0)
    assert ended_by(suite, [text(f"ok {STOP}")]) == ("agent_stop", 0.0)
    for empty in (None, "", " \n"):
        assert ended_by(suite, [text(empty)]) == ("invalid_agent_message", 0.0)
    assert ended_by(suite, [text("a")] * 3) == ("max_turns", 0.0)
    # Calls beside a stop are not made; in the last turn it comes too late, as in the
    # package, whose limit has the last word.
    turn = {**tools(("get_user_all_orders", {})), "content": STOP}
    assert ended_by(suite, [text("a"), turn]) == ("agent_stop", 0.0)
    assert ended_by(suite, [text("a"), text("b"), turn]) == ("max_turns", 0.0)


def test_tool_errors_are_answers_and_counted():
    suite = make_vita()
    ref = suite.tasks("train")[0]
    _, task = suite.task(ref)
    name, order = place_order(
        task, {"store_id": "x", "products": [], "location": {"address": "y"}}
    )
    calls = [
        ("get_user_all_orders", {}),
        ("no_such_tool", {}),
        ("__init__", {}),
        ("get_user_all_orders", {"requestor": "user"}),
        ("get_user_all_orders", {"tool_name": "weather"}),
        ("get_delivery_store_info", {}),
        ("get_delivery_store_info", {"store_id": ["x"]}),
        ("delivery_distance_to_time", {"distance": "far"}),
        (name, order),
        (name, {**order, "product_cnts": "two"}),
        ("get_user_all_orders", "[1]"),
        ("get_user_all_orders", "{"),
    ]
    _, steps = asyncio.run(play(suite.make(), ref, [tools(*calls), text(STOP)]))
    answers = [message["content"] for message in steps[0].messages]
    assert len(answers) == len(calls)
    # Refusals of a tool itself are texts of its own.
    refused = [answer.startswith("Error: ") for answer in answers]
    assert [name for (name, _), bad in zip(calls, refused) if not bad] == [
        "get_user_all_orders",
        "delivery_distance_to_time",
        "create_delivery_order",
        "create_delivery_order",
    ]
    assert answers[1] == "Error: Tool 'no_such_tool' not found."
    assert steps[1].info["num_malformed_tool_calls"] == 2
    assert steps[1].info["num_tool_errors"] == sum(refused) == 8


def test_faults_of_user_and_judge_are_episode_errors():
    def fail(messages):
        raise EpisodeError("down")

    for user, judge in ((fail, None), (lambda m: " ", None), (lambda m: STOP, None)):
        suite = make_vita(user=user, judge=judge)
        with pytest.raises(EpisodeError, match=r"down|said nothing|left before"):
            asyncio.run(play(suite.make(), suite.tasks("train")[0], []))
    for judge in (fail, lambda m: "well", lambda m: '{"a": 1}', lambda m: "[1]"):
        suite = make_vita(judge=judge)
        with pytest.raises(EpisodeError, match=r"down|unreadable verdict on window 1"):
            asyncio.run(play(suite.make(), suite.tasks("train")[0], [text(STOP)]))


def kind_judge(messages):
    """Finds that everything holds."""
    return json.dumps([{**r, "meetExpectation": True} for r in rubrics_in(messages)])


@pytest.mark.parametrize(
    "write",
    [
        lambda messages: "{}",
        lambda messages: "null",
        lambda messages: "[]",
        # Cut off in the last rubric, and before it: the package repairs both.
        lambda messages: kind_judge(messages).rpartition('"meetExpectation"')[0],
        lambda messages: kind_judge(messages).rpartition('{"rubric_idx"')[0],
    ],
)
def test_a_verdict_that_leaves_out_a_rubric_is_none(write):
    suite = make_vita(judge=kind_judge)
    ref = suite.tasks("train")[0]
    assert ended_by(suite, [text(STOP)], ref) == ("agent_stop", 1.0)
    suite = make_vita(judge=write)
    with pytest.raises(EpisodeError, match=r"on window 1 leaves out \d+ of \d+ rub"):
        asyncio.run(play(suite.make(), ref, [text(STOP)]))


# --- Episodes side by side ------------------------------------------------------------


def curious_turns(suite, ref):
    """Reads whatever shows the data of other episodes, and writes in between."""
    domain, task = suite.task(ref)
    environment = task.environment
    stores = environment.get("stores") or environment.get("shops")
    store_id, store = next(iter(stores.items()))
    dates = {"date_start": "2023-01-01", "date_end": "2027-01-01"}
    reads = [
        ("delivery_product_search_recommand", {"keywords": ["a"]}),
        ("delivery_store_search_recommand", {"keywords": ["a"]}),
        ("get_delivery_store_info", {"store_id": store_id}),
        ("instore_product_search_recommend", {"keywords": ["a"]}),
        ("instore_shop_search_recommend", {"keywords": ["a"]}),
        ("address_to_longitude_latitude", {"address": store["location"]["address"]}),
        ("address_to_longitude_latitude", {"address": "road"}),
        ("get_holiday_date", {"year": "2024", "holiday_name": "Qixi Festival"}),
        ("get_holiday_date", {"year": "2024", "holiday_name": "七夕节"}),
        ("get_user_all_orders", {}),
        ("weather", {"address": "city", **dates}),
    ]
    writes = reference_turns(suite, ref)[:-1] if domain == "delivery" else []
    random.Random(ref.id).shuffle(reads)
    return [*map(tools, reads), *writes, *map(tools, reads), text(STOP)]


def transcript(played):
    """All that was said, order ids aside: they hash the clock."""
    start, steps = played
    said = [start.messages, start.tools, *(step.messages for step in steps)]
    return re.sub(r"\bO[TI][0-9a-f]{10}\b", "ORDER", repr(said)), steps[-1].reward


def test_sixty_four_episodes_at_once_see_what_each_sees_alone():
    suites = [
        make_vita(judge=stern_judge, domains=["delivery", "instore"]),
        make_vita(language="chinese"),
    ]
    jobs = [
        (suite, ref)
        for suite in suites
        for ref in random.Random(0).sample(all_tasks(suite), 32)
    ]

    async def play_one(suite, ref):
        turns = curious_turns(suite, ref)
        return transcript(await play(suite.make(), ref, turns))

    async def play_at_once():
        return await asyncio.gather(*(play_one(*job) for job in jobs))

    alone = [asyncio.run(play_one(*job)) for job in jobs]
    assert asyncio.run(play_at_once()) == alone
    # All of them use tools that work, and nothing is kept.
    assert all("longitude" in said for said, _ in alone)
    assert registered_episodes() == 0


def registered_episodes():
    from vita.data_model.thread_safe_base import ThreadSafeBase

    from rllib_llm_async.envs.vita.isolation import Compartment, _registries

    return sum(
        isinstance(key, Compartment)
        for registry in _registries(ThreadSafeBase)
        for key in registry
    )


# --- Bad messages ---------------------------------------------------------------------

#: No order or product of the episode's own is among these: it would rightly be used.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["U000001", "2025-06-21 11:20:00", "9999-12-31", "\ud83d"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@functools.cache
def fuzzed_suite():
    return make_vita()


def bad_calls():
    """Tools with all of their arguments, all of them wrong, and worse."""
    known = [
        st.tuples(
            st.just(tool["function"]["name"]),
            st.fixed_dictionaries(
                {
                    key: values
                    for key in tool["function"]["parameters"].get("required", [])
                }
            ),
        )
        for tool in fuzzed_suite().tool_schemas("delivery")
    ]
    unknown = st.tuples(
        st.sampled_from(["use_tool", "db", "__class__"]) | st.text(max_size=8),
        st.dictionaries(
            st.sampled_from(["requestor", "tool_name", "self"]) | st.text(max_size=8),
            values,
            max_size=3,
        )
        | st.text(max_size=20)
        | st.sampled_from(["[" * 5000, "{}", "null", r'{"a": "\ud83d"}', "NaN"]),
    )
    return st.one_of(*known, unknown)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_bad_messages_raise_nothing_and_change_nothing(data):
    suite = fuzzed_suite()
    ref = data.draw(st.sampled_from(suite.tasks("test")))
    message = st.lists(bad_calls(), min_size=1, max_size=3).map(
        lambda drawn: tools(*drawn)
    ) | st.text(min_size=1, max_size=20).filter(str.strip).map(text)
    bad = data.draw(st.lists(message, min_size=10, max_size=10))

    async def play_both():
        env, other = suite.make(), suite.make()
        await env.reset(ref)
        await other.reset(ref)
        for message in bad:
            step = await env.step(message)
            assert len(step.messages) == len(message.get("tool_calls") or [1])
            assert not (step.terminated or step.truncated)
            "".join(said["content"] for said in step.messages).encode()
        disturbed, fresh = (
            e.episode.environment.tools.db.model_dump_json() for e in (env, other)
        )
        assert disturbed == fresh
        for message in reference_turns(suite, ref):
            disturbed, fresh = await env.step(message), await other.step(message)
        assert disturbed.reward == fresh.reward

    asyncio.run(play_both())
