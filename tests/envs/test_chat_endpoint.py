"""The endpoint client against a real HTTP server: faults, limits, counters, secrets."""

import asyncio
import json
import logging
import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rllib_llm_async.envs import retries
from rllib_llm_async.envs.agent_env import EpisodeError
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from tests.envs.chat_stub import ChatStub, say, say_cut_off
from tests.fuzz.properties import answer_is_read_or_refused

SECRET = "sk-not-to-be-seen"
HELLO = [{"role": "user", "content": "hello"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture
def make_model(chat_stub, monkeypatch):
    for name, seconds in {
        "FIRST_PAUSE": 0.005,
        "LONGEST_PAUSE": 0.1,
        "FIRST_PROBE_PAUSE": 0.02,
        "LONGEST_PROBE_PAUSE": 0.1,
    }.items():
        monkeypatch.setattr(retries, name, seconds)
    monkeypatch.setenv("STUB_KEY", SECRET)

    def make(**settings):
        settings = {
            "model": "m",
            "base_url": chat_stub.url,
            "api_key_env": "STUB_KEY",
            **settings,
        }
        return make_chat_model(settings, "env_config.user")

    return make


def ask(model, **kwargs):
    return asyncio.run(model.complete(HELLO, **kwargs))


def test_a_users_own_thoughts_do_not_come_back(chat_stub, make_model):
    chat_stub.answers = [say("<think>be difficult</think>\n\nNo."), say("<think>be")]
    model = make_model(max_retries=0)
    assert ask(model) == {"role": "assistant", "content": "No."}
    with pytest.raises(EpisodeError, match="empty answer"):
        ask(model)


def test_text_and_tool_calls_come_back_as_messages(chat_stub, make_model):
    chat_stub.answers = [say("hi"), say(None, tool_calls=[CALL])]
    model = make_model(temperature=0.5, max_tokens=7, extra_body={"top_k": 3})
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert ask(model) == {"role": "assistant", "content": "hi"}
    assert ask(model, tools=[tool])["tool_calls"] == [CALL]
    first, second = chat_stub.requests
    assert first == {
        "model": "m",
        "messages": HELLO,
        "temperature": 0.5,
        "max_tokens": 7,
        "top_k": 3,
    }
    assert second["tools"] == [tool]
    assert chat_stub.headers[0]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("call", [{}, {"tool_calls": [CALL]}])
def test_an_answer_that_was_cut_off_is_asked_for_again(chat_stub, make_model, call):
    cut = say_cut_off("I would like to", **call)
    chat_stub.answers = [cut, say("ok")]
    assert ask(make_model())["content"] == "ok"
    chat_stub.answers = [cut]
    with pytest.raises(EpisodeError, match="cut off: max_tokens"):
        ask(make_model(max_retries=1))


def test_answers_that_cannot_be_used_are_paid_for(chat_stub, make_model):
    chat_stub.answers = [say(""), say_cut_off(""), say("ok")]
    model = make_model(price_per_million_completion_tokens=5.0)
    assert ask(model)["content"] == "ok"
    metrics = model.metrics()
    # Three answers of 2 tokens: 3 * 2 * 5 / 1e6.
    assert metrics["completion_tokens"] == 6 and metrics["prompt_tokens"] == 30
    assert metrics["cost"] == pytest.approx(3e-5)


def test_passing_faults_are_tried_again_and_everything_is_counted(
    chat_stub, make_model
):
    refuse = [lambda body, status=status: status for status in (500, 429, 503)]
    chat_stub.answers = [*refuse, say("ok")]
    model = make_model(
        max_retries=3,
        price_per_million_prompt_tokens=3.0,
        price_per_million_completion_tokens=5.0,
    )
    assert ask(model)["content"] == "ok"
    metrics = model.metrics()
    assert metrics.pop("seconds") > 0
    assert metrics == {
        "calls": 1,
        "failures": 0,
        "retries": 3,
        "down_seconds": 0,
        "prompt_tokens": 10,
        "completion_tokens": 2,
        # (10 * 3 + 2 * 5) / 1e6
        "cost": pytest.approx(4e-5),
    }


@pytest.mark.parametrize(
    "answer",
    [
        lambda body: 500,
        lambda body: 401,
        say(""),
        say(None),
        say(None, tool_calls=[]),
        say(None, tool_calls=[{"id": "c", "function": {"name": "f"}}]),
        lambda body: b"<html>",
        lambda body: b"[]",
        lambda body: json.dumps({"choices": []}).encode(),
        lambda body: json.dumps({"choices": [{"message": None}]}).encode(),
        lambda body: SECRET.encode(),
    ],
)
def test_no_valid_answer_is_an_episode_error(chat_stub, make_model, answer, caplog):
    caplog.set_level(logging.DEBUG)
    chat_stub.answers = [answer]
    model = make_model(max_retries=1)
    with pytest.raises(EpisodeError, match=r"env_config\.user: model 'm'") as error:
        ask(model)
    assert "\n" not in str(error.value)
    shown = f"{error.value!r} {error.value.__cause__!r} {model!r} {vars(model)!r}"
    assert SECRET not in shown + caplog.text
    assert model.metrics()["failures"] == 1
    assert model.metrics()["retries"] == (len(chat_stub.requests) - 1)


def test_a_silent_endpoint_is_given_up(chat_stub, make_model):
    chat_stub.seconds = 1.0
    with pytest.raises(EpisodeError, match="timed out"):
        ask(make_model(timeout_seconds=0.1, max_retries=1))
    assert len(chat_stub.requests) == 2


def test_an_absent_endpoint_is_an_episode_error(make_model):
    with pytest.raises(EpisodeError, match="Connection error"):
        ask(make_model(base_url="http://127.0.0.1:9/v1", max_retries=0))


def test_calls_under_way_are_limited_and_the_loop_may_change(chat_stub, make_model):
    chat_stub.seconds = 0.05
    model = make_model(max_concurrency=3)

    async def ask_many():
        return await asyncio.gather(*(model.complete(HELLO) for _ in range(12)))

    for _ in range(2):
        assert len(asyncio.run(ask_many())) == 12
    assert chat_stub.max_under_way == 3
    assert model.metrics()["calls"] == 24


def test_a_cancelled_call_gives_its_place_back(chat_stub, make_model):
    chat_stub.seconds = 0.2
    model = make_model(max_concurrency=1)

    async def cancel_one():
        call = asyncio.create_task(model.complete(HELLO))
        await asyncio.sleep(0.05)
        call.cancel()
        return await model.complete(HELLO)

    assert asyncio.run(cancel_one())["content"] == "ok"
    assert model.metrics()["failures"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_urll": "x"}, r"user\.base_urll: unknown, did you mean 'base_url'\?"),
        (
            {"timeout_seconds": "5"},
            r"user\.timeout_seconds: got '5', must be a valid num",
        ),
        (
            {"max_concurrency": 0},
            r"user\.max_concurrency: got 0, must be greater",
        ),
        ({"base_url": "localhost:1"}, r"user\.base_url: .*http://localhost:8000/v1"),
        ({"base_url": "http://a:b@c/v1"}, r"user\.base_url: .*use api_key_env"),
        ({"api_key_env": "NO_KEY"}, r"variable of this .* set; .*api_key_env: null"),
        ({"model": None}, r"user\.model: got None, must be a valid string"),
    ],
)
def test_bad_settings_are_one_line_that_names_the_key(make_model, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        make_model(**settings)
    assert "\n" not in str(error.value)


def test_settings_must_be_a_mapping_with_a_model(monkeypatch):
    with pytest.raises(ValueError, match=r"env_config\.judge: got 'gpt', must be a ma"):
        make_chat_model("gpt", "env_config.judge")
    with pytest.raises(ValueError, match=r"env_config\.judge\.model: missing"):
        make_chat_model({}, "env_config.judge")


def test_an_endpoint_without_a_key_gets_none(chat_stub, make_model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert ask(make_model(api_key_env=None))["content"] == "ok"
    assert SECRET not in str(chat_stub.headers)


BAD_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
#: What an endpoint in trouble gives instead of an answer.
BAD_ANSWERS = [
    lambda body: 500,
    lambda body: 503,
    lambda body: 429,
    lambda body: None,
    lambda body: b"<html>",
    lambda body: b'{"choices": [{"message": {"conte',
    say(""),
    say(None, tool_calls=[BAD_CALL]),
]


def parsed(message):
    """Raises ValueError as whoever needs the arguments would."""
    for call in message.get("tool_calls", ()):
        json.loads(call["function"]["arguments"])
    return message


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_bad_answers_lose_no_call_with_default_settings(chat_stub, make_model, share):
    rng, good = random.Random(0), say("ok")

    def answer(body):
        with chat_stub.lock:
            which = rng.choice(BAD_ANSWERS) if rng.random() < share else good
        return which(body)

    chat_stub.answers = [answer]
    model = make_model()

    async def ask_many():
        calls = (model.complete(HELLO, read=parsed) for _ in range(600))
        return await asyncio.gather(*calls)

    assert {message["content"] for message in asyncio.run(ask_many())} == {"ok"}
    metrics = model.metrics()
    assert metrics["calls"] == 600 and metrics["failures"] == 0
    # Each attempt is bad with probability p, so that p / (1 - p) follow a call.
    expected = 600 * share / (1 - share)
    assert 0.6 * expected < metrics["retries"] < 1.6 * expected
    assert len(chat_stub.requests) == 600 + metrics["retries"]


def test_an_endpoint_that_is_down_is_waited_for_and_said(make_model, caplog):
    stub = ChatStub()
    port, url = stub.server_port, stub.url
    stub.shutdown()
    stub.server_close()
    model = make_model(base_url=url)

    def said(text):
        return sum(text in record.getMessage() for record in caplog.records)

    async def scenario():
        calls = [asyncio.ensure_future(model.complete(HELLO)) for _ in range(50)]
        while model.waiting_for() is None:
            await asyncio.sleep(0.01)
        assert model.waiting_for().startswith(f"env_config.user: endpoint {url}/ down ")
        assert "APIConnectionError" in model.waiting_for()
        while said("down for") < 2:
            await asyncio.sleep(0.05)
        assert not any(call.done() for call in calls)
        assert model.metrics()["down_seconds"] > 0
        calls[0].cancel()
        stub = ChatStub(port)
        stub.answers = [say("back")]
        try:
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*calls[1:])
            assert {answer["content"] for answer in answers} == {"back"}
            assert model.waiting_for() is None
            waited = model.metrics()["down_seconds"]
            await model.complete(HELLO)
            assert model.metrics()["down_seconds"] == waited
            # One probe, then each call once.
            assert len(stub.requests) == 1 + 49 + 1
        finally:
            stub.shutdown()
            stub.server_close()

    asyncio.run(scenario())
    assert model.metrics()["failures"] == 0
    assert model.metrics()["retries"] <= 50  # no call is spun on
    assert said("down for") < 8  # at doubling times
    assert said("answers again") == 1


def test_an_endpoint_that_stalls_is_down_until_it_answers(chat_stub, make_model):
    chat_stub.seconds = 3.0
    model = make_model(timeout_seconds=1.0, max_retries=0, max_concurrency=20)

    async def scenario():
        calls = [asyncio.ensure_future(model.complete(HELLO)) for _ in range(20)]
        while model.waiting_for() is None:
            await asyncio.sleep(0.01)
        assert "timed out: no answer within 1.0 s" in model.waiting_for()
        chat_stub.seconds = 0.0
        # A machine that is busy may take its time from here on.
        model._settings = model._settings.model_copy(update={"timeout_seconds": 60.0})
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = asyncio.run(scenario())
    # Those that failed before it was known to be down had no retry left.
    lost = sum(isinstance(end, EpisodeError) for end in ended)
    assert lost == retries.DOWN_AFTER - 1


def test_a_call_that_fails_for_reasons_of_its_own_does_not_wait(chat_stub, make_model):
    """Alone, it looks like an endpoint that is down; the probe tells them apart."""

    def answer(body):
        mine = body["messages"] == HELLO
        return 500 if mine else {"role": "assistant", "content": "yes?"}

    chat_stub.answers = [answer]
    model = make_model(max_retries=retries.DOWN_AFTER + 2)
    with pytest.raises(EpisodeError, match="InternalServerError"):
        ask(model)
    num_mine = sum(request["messages"] == HELLO for request in chat_stub.requests)
    assert num_mine == retries.DOWN_AFTER + 4  # the one that met the outage is free


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(chat_stub, make_model, status):
    chat_stub.answers = [lambda body: status]
    model = make_model()
    with pytest.raises(EpisodeError, match=rf"model 'm': .*Error: .*{status}"):
        ask(model)
    assert len(chat_stub.requests) == 1 and model.metrics()["failures"] == 1


def test_a_refusal_after_an_outage_is_told_to_every_call(chat_stub, make_model):
    answers = [lambda body: 500] * 64 + [lambda body: 401]
    chat_stub.answers = answers
    model = make_model()

    async def scenario():
        calls = (model.complete(HELLO) for _ in range(20))
        async with asyncio.timeout(30):
            return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(end) for end in asyncio.run(scenario())} == {EpisodeError}


def test_the_endpoint_says_when_to_come_back(chat_stub, make_model, monkeypatch):
    slept = []
    sleep = asyncio.sleep

    async def noted(seconds):
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr("rllib_llm_async.envs.retries.asyncio.sleep", noted)
    chat_stub.more_headers = {"Retry-After": "7"}
    chat_stub.answers = [lambda body: 429, say("ok")]
    assert ask(make_model())["content"] == "ok"
    assert max(slept) == pytest.approx(7.0, abs=0.01)


def test_what_cannot_be_read_is_asked_for_again(chat_stub, make_model):
    def number(message):
        return int(message["content"])

    chat_stub.answers = [say("seven"), say("7")]
    assert ask(make_model(), read=number) == 7
    chat_stub.answers = [say("seven")]
    with pytest.raises(EpisodeError, match="invalid literal"):
        ask(make_model(max_retries=2), read=number)


@hypothesis_settings(deadline=None)
@given(
    st.text()
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        *("choices", "message", "content", "tool_calls", "usage"),
                        *("id", "function", "name", "arguments", "prompt_tokens"),
                    ]
                ),
                inner,
            )
        ),
        max_leaves=20,
    ).map(json.dumps)
)
def test_any_answer_is_a_message_or_refused(body):
    answer_is_read_or_refused(body)


@pytest.mark.parametrize("content", ["[" * 100_000, "<think>" * 20_000, "\\ud83d"])
def test_long_and_broken_answers(content):
    answer_is_read_or_refused(
        f'{{"choices": [{{"message": {{"content": "{content}"}}}}]}}'
    )
    answer_is_read_or_refused(content)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_env": SECRET},
        {"api_key_env": SECRET.replace("-", "_")},
        {"base_url": f"http://user:{SECRET}@host/v1"},
        {"api_key": SECRET},
        {"extra_header": SECRET},
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_repeated(settings):
    with pytest.raises(ValueError, match=r"env_config\.user\.") as error:
        make_chat_model({"model": "m", **settings}, "env_config.user")
    said = f"{error.value!r} {error.value.__cause__!r}"
    assert SECRET not in said.replace("_", "-")
