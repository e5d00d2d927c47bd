"""The bundled domains: solvable, not by constants, not to be broken by bad messages."""

import asyncio
import json
import random
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_llm_async.envs.mini.demonstrations import demonstrate
from rllib_llm_async.envs.mini.domain import text_message, tool_message
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.envs.mini.numbers import compare, near
from rllib_llm_async.envs.registry import make_suite

DOMAINS = [domain.name for domain in MiniMixtureSuite.domain_classes]


@pytest.fixture(params=DOMAINS)
def suite(request):
    return MiniMixtureSuite([request.param])


def success_rate(suite, tasks, **kwargs):
    return sum(demonstrate(suite, task, **kwargs).success for task in tasks) / len(
        tasks
    )


def play(suite, task, messages):
    """The last step, and the environment, after one message or more."""
    env = suite.make()
    env.reset_now(task)
    for message in messages:
        step = env.step_now(message)
        if step.terminated or step.truncated:
            break
    return step


def find_task(suite, condition):
    return next(t for t in suite.tasks("train") if condition(suite.build(t)))


def test_perfect_demonstrator_always_succeeds_and_an_erring_one_does_not(suite):
    tasks = suite.tasks("train")[:300] + suite.tasks("test")[:200]
    assert success_rate(suite, tasks) == 1.0
    assert 0.4 < success_rate(suite, tasks, shortcut_rate=0.4) < 0.8
    assert 0.2 < success_rate(suite, tasks, slip_rate=0.4) < 0.8


@pytest.mark.parametrize(
    "text",
    [
        "done.",
        "sorry, cannot cancel: status.",
        "ok, kept.",
        "transferred.",
        "done cannot kept $0 $20 confirm?",
    ],
)
def test_constant_policies_score_zero(suite, text):
    for task in suite.tasks("test")[:100]:
        step = play(suite, task, [text_message(text)] * 12)
        assert step.reward == 0.0 and not step.info["success"]
        assert step.info["rubric_score"] < 1.0


def test_splits_share_no_content_and_tasks_are_reproducible(suite):
    train = {suite.build(t).signature for t in suite.tasks("train")}
    test = {suite.build(t).signature for t in suite.tasks("test")}
    assert len(train) > 3900 and len(test) > 250 and not train & test
    task = suite.tasks("test")[5]
    assert suite.build(task).signature == suite.build(task).signature
    assert suite.build(task).first_message == suite.build(task).first_message


def test_a_shortcut_never_succeeds(suite):
    num_taken = 0
    for task in suite.tasks("test")[:100]:
        hasty = demonstrate(suite, task, shortcut_rate=1.0)
        takes_one = hasty.messages != demonstrate(suite, task).messages
        assert hasty.success != takes_one
        num_taken += takes_one
    assert num_taken > 50


def test_users_speak_in_many_words_and_want_many_things(suite):
    tasks = suite.tasks("test")
    dialogues = [demonstrate(suite, task).messages for task in tasks]
    said = [m["content"] for d in dialogues for m in d if m["role"] == "user"]
    assert len({word for text in said for word in re.findall("[a-z]+", text)}) >= 80
    # Some go on after a result was told, and some are asked to confirm twice.
    results = [len(suite.build(task).must_say) for task in tasks]
    assert 0.1 < sum(n > 1 for n in results) / len(tasks) < 0.9


def test_half_of_the_numbers_to_compare_lie_near_the_limit():
    rng = random.Random(0)
    numbers = [near(rng, 40, 10, 80) for _ in range(1000)]
    assert all(10 < n < 80 and n % 10 for n in numbers)
    # Half and two tens of the other seven: 0.5 + 0.5 * 2 / 7 = 0.64.
    assert 0.58 < sum(30 < n < 50 for n in numbers) / 1000 < 0.70
    assert compare(44, 40) == "44 of 40 over" and compare(3, 3) == "3 of 3 within"


def test_a_subset_of_the_mixture_has_the_same_tasks():
    mixture, tau2 = MiniMixtureSuite(), make_suite("mini_tau2", {"domains": ["retail"]})
    (task,) = [t for t in mixture.tasks("test") if t.id == "retail/3"]
    (same,) = [t for t in tau2.tasks("test") if t.id == "retail/3"]
    assert mixture.build(task).signature == tau2.build(same).signature
    assert make_suite("mini_vita").domains == ["delivery", "instore"]


# --- What the policies ask for ----------------------------------------------------


def test_writing_without_confirmation_scores_zero():
    suite = MiniMixtureSuite(["airline"])
    task = find_task(
        suite,
        lambda x: (
            x.wants == "cancel" and x.gives_id and not x.mistakes_id and x.must_change
        ),
    )
    id = suite.build(task).reservation_id
    step = play(
        suite,
        task,
        [
            tool_message("get_res", id=id),
            tool_message("cancel", id=id),
            text_message("done."),
        ],
    )
    assert step.info["reward_breakdown"] == {
        "state": 1.0,
        "communicate": 1.0,
        "policy": 0.0,
    }
    assert step.info["rubric_score"] == pytest.approx(2 / 3)
    assert step.reward == 0.0


def test_confirming_the_wrong_one_of_two_orders_is_declined():
    suite = MiniMixtureSuite(["retail"])
    task = find_task(suite, lambda x: x.is_ambiguous and x.must_change)
    env = suite.make()
    env.reset_now(task)
    wrong = next(o for o in env.episode.db["orders"] if o != env.episode.order)
    (reply,) = env.step_now(text_message(f"confirm cancel {wrong}, $9?")).messages
    assert reply["content"].startswith("no")
    assert not env.episode.agreed


def test_only_the_user_changes_the_phone_and_only_when_asked():
    suite = MiniMixtureSuite(["telecom"])
    task = find_task(suite, lambda x: x.faults == ["airplane"] and not x.is_abroad)
    env = suite.make()
    env.reset_now(task)
    phone = env.episode.db["phone"]
    (answer,) = env.step_now(tool_message("switch", airplane="off")).messages
    assert answer["content"] == "error: unknown tool" and phone["airplane"] == "on"
    env.step_now(text_message("please check the phone."))
    assert phone["airplane"] == "on"
    env.step_now(text_message("please switch airplane off."))
    assert phone["airplane"] == "off"


def test_a_bill_is_paid_only_once_it_was_sent():
    suite = MiniMixtureSuite(["telecom"])
    task = find_task(suite, lambda x: x.faults == ["bill"])
    env = suite.make()
    env.reset_now(task)
    phone, line = env.episode.phone, env.episode.db["line"]
    pay = text_message(f"please pay ${line['bill']}.")
    env.step_now(pay)
    assert line["bill"] > 0
    (refused,) = env.step_now(tool_message("resume", phone=phone)).messages
    assert refused["content"] == "error: not allowed"
    env.step_now(tool_message("send_bill", phone=phone))
    env.step_now(text_message("please pay."))
    assert line["bill"] > 0
    env.step_now(pay)
    assert line["bill"] == 0
    env.step_now(tool_message("resume", phone=phone))
    assert line["status"] == "active"


def test_a_rubric_gives_partial_credit_but_only_all_of_it_is_success():
    suite = MiniMixtureSuite(["instore"])
    task = find_task(
        suite,
        lambda x: (
            not x.is_closed
            and x.hour in x.free
            and x.new_hour is None
            and len(x.must_change) == 1
            and x.tells_people
            and x.told_people == x.people
        ),
    )
    x = suite.build(task)
    booking = {"course": x.course, "hour": x.hour}
    messages = [
        tool_message("weather"),
        tool_message("slot", **booking),
        text_message(f"confirm {x.course} at {x.hour} for {x.people}?"),
        tool_message("book", **booking, people=x.people % 9 + 1),
        text_message(f"done, at {x.hour}."),
    ]
    step = play(suite, task, messages)
    failed = [k for k, v in step.info["reward_breakdown"].items() if not v]
    assert failed == ["policy", "right_people"] and step.reward == 0.0
    assert step.info["rubric_score"] == pytest.approx(5 / 7)
    messages[3] = tool_message("book", **booking, people=x.people)
    assert play(suite, task, messages).reward == 1.0


def test_the_user_changes_the_budget_at_the_first_offer():
    suite = MiniMixtureSuite(["delivery"])
    task = find_task(suite, lambda x: x.new_budget < x.budget)
    env = suite.make()
    env.reset_now(task)
    new_budget, dish = env.episode.new_budget, env.episode.dish
    offer = text_message(f"confirm {dish}1, $15 to {env.episode.place}?")
    (changed,) = env.step_now(offer).messages
    assert f"${new_budget} " in changed["content"] and not env.episode.agreed
    env.step_now(offer)
    assert env.episode.agreed


# --- Bad messages: some 150 per domain; --hypothesis-profile=thorough: over 1,000 ----

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def calls_of(domain):
    """Tool calls of every degree of wrongness, some of them right."""
    known = st.sampled_from(
        [*domain.db]
        + [value for value in vars(domain).values() if isinstance(value, str)]
        + [key for table in domain.db.values() if table for key in table]
    )
    fitting = st.sampled_from(domain.tools).flatmap(
        lambda tool: st.tuples(
            st.just(tool.name),
            st.fixed_dictionaries(
                {p: known | st.integers() | json_values for p in tool.parameters}
            ).map(json.dumps),
        )
    )
    wild = st.tuples(
        st.sampled_from([t.name for t in domain.tools])
        | st.sampled_from(["", "__init__", "policy", "call_tool"])
        | json_values,
        st.text(max_size=20) | json_values.map(json.dumps) | st.just("[" * 5000),
    )
    call = (fitting | wild).map(
        lambda c: {"id": "x", "function": {"name": c[0], "arguments": c[1]}}
    )
    return st.lists(call | json_values, min_size=1, max_size=3)


def same_shape(before, now):
    """Whether only values changed, or rows of scalars were added to a log."""
    if isinstance(before, dict):
        return before.keys() == now.keys() and all(
            same_shape(value, now[key]) for key, value in before.items()
        )
    if isinstance(before, int) and not isinstance(before, bool):
        return isinstance(now, int) and 0 <= now < 1000
    return before is None or type(before) is type(now)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data(), st.sampled_from(DOMAINS), st.integers(0, 255))
def test_no_message_raises_or_corrupts_or_scores(data, name, number):
    suite = MiniMixtureSuite([name])
    env = suite.make()
    env.reset_now(suite.tasks("test")[number])
    domain = env.episode
    intact = json.loads(json.dumps(domain.db))
    texts = st.text(max_size=30) | json_values
    messages = calls_of(domain).map(lambda c: {"tool_calls": c}) | texts.map(
        text_message
    )
    for _ in range(suite.max_turns):
        before = json.dumps(domain.db)
        step = env.step_now(data.draw(messages))
        if all(m["content"].startswith("error") for m in step.messages):
            assert json.dumps(domain.db) == before
        assert same_shape(intact, json.loads(json.dumps(domain.db)))
        if step.terminated or step.truncated:
            break
    assert step.reward == 0.0 and (step.terminated or step.truncated)


# --- Names and time ---------------------------------------------------------------


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mini_tau2'"):
        make_suite("mini_tao2", {})
    with pytest.raises(ValueError, match="did you mean 'airline'"):
        make_suite("mini_tau2", {"domains": ["airlines"]})
    with pytest.raises(ValueError, match=r"env_config.domain: .*'domains'"):
        make_suite("mini_tau2", {"domain": "airline"})


def test_the_user_alone_takes_time_to_answer(monkeypatch):
    suite = MiniMixtureSuite(["airline"], user_seconds=2.0)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)

    async def play_three_turns():
        env = suite.make()
        await env.reset(suite.tasks("test")[0])
        await env.step(tool_message("get_res", id="r1"))
        assert slept == []
        for _ in range(2):
            await env.step(text_message("what is the reservation id?"))

    asyncio.run(play_three_turns())
    assert len(slept) == 2 and all(1.0 <= seconds <= 3.0 for seconds in slept)
    with pytest.raises(ValueError, match="user_seconds: got -1"):
        MiniMixtureSuite(["airline"], user_seconds=-1)
