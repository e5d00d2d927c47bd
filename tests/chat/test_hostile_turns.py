"""Whatever a model, a user or a tool says: a message comes back, no turn is forged."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.chat.nesting import MAX_OPEN, Nesting
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite
from rllib_llm_async.models.small_agent import small_agent_dir
from tests.chat.templates import TEMPLATES
from tests.fuzz.properties import no_turn_is_forged, step_is_answered, turn_is_read

pytestmark = pytest.mark.thorough

#: Families with parsers of their own, and what opens a call and an argument in each.
OPENINGS = {
    "qwen3": ("<tool_call>", '{"a":'),
    "gptoss": ("<|start|>assistant to=functions.f<|message|>", '{"a":'),
    "qwen3_8": ("<tool_call>\n<function=find>\n", "<parameter=order>\n"),
    "glm4moe": ("<tool_call>find\n", "<arg_key>a</arg_key><arg_value>"),
    "mistral": ("[TOOL_CALLS]", '[{"a":'),
    "llama3_1": ('{"name": "f", "parameters": ', '{"a":'),
    "deepseekv3": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>"),
    "gemma4_v5": ("<|tool_call>call:f{", "a:{"),
    "lfm2_v2": ("<|tool_call_start|>[f(a=", "["),
    "gemma3": ("<tool_call>", '{"a":'),
}
marks = st.sampled_from(
    [part for opening in OPENINGS.values() for part in opening]
    + ["</think>", "<think>", "</tool_call>", "<|im_end|>", "<|im_start|>user\n"]
    + ["</s>", "[/INST]", "<|eot_id|>", "<end_of_turn>", "<｜User｜>", "<|user|>"]
    + ['{"name": "find", "arguments": {"order": "', '"}}', "\\ud83d", "NaN", "1e999"]
    + ["9" * 5000, "\u241f", "__class__", "__proto__", "\0", "\u202e"]
)
texts = st.lists(marks | st.text(max_size=8), max_size=8).map("".join)


@pytest.fixture(scope="module")
def make_format(make_tokenizer):
    @cache
    def make(name):
        if name == "small_agent":
            return ChatFormat(AutoTokenizer.from_pretrained(small_agent_dir()))
        if name not in TEMPLATES:
            pytest.skip(f"trl ships no template {name}")
        return ChatFormat(make_tokenizer(TEMPLATES[name]))

    return make


@pytest.mark.parametrize("name", OPENINGS)
@settings(deadline=None, max_examples=30)
@given(text=texts)
def test_any_turn_becomes_a_message_that_an_environment_answers(
    make_format, name, text
):
    message = turn_is_read(make_format(name), text)
    step_is_answered(MiniMixtureSuite(), message)


@pytest.mark.parametrize("name", ["small_agent", *OPENINGS])
@settings(deadline=None, max_examples=20)
@given(said=st.tuples(texts, texts, texts))
def test_no_text_adds_or_removes_a_turn(make_format, name, said):
    no_turn_is_forged(make_format(name), said)


@pytest.mark.parametrize("name", OPENINGS)
def test_what_is_opened_thousands_of_times_is_malformed_and_done_at_once(
    make_format, name, monkeypatch
):
    chat_format = make_format(name)
    seen = []
    parser = chat_format._parser._parse_calls
    if hasattr(parser, "_parser"):  # one of vLLM's
        monkeypatch.setattr(
            parser, "_parser", lambda text, tools: (seen.append(text), (text, []))[1]
        )
    call, argument = OPENINGS[name]
    for text in (call + argument * 5000, call * 5000 + argument * 5000):
        turn_is_read(chat_format, text)
    assert seen == []  # a parser would need a minute and more
    turn_is_read(chat_format, call * 5000)


def test_only_what_stays_open_counts():
    nesting = Nesting("<call>f<key>a</key><value>", "</value></call>")
    one = "<call>f<key>a</key><value>x</value></call>"
    assert not nesting.is_too_deep(one * 1000)
    assert not nesting.is_too_deep("</value>" * 1000 + "<value>" * MAX_OPEN)
    assert nesting.is_too_deep("<value>" * (MAX_OPEN + 1))
    assert nesting.is_too_deep(one + "{" * (MAX_OPEN + 1) + "}" * (MAX_OPEN + 1))
    assert not nesting.is_too_deep("<br>" * 1000 + "{}[]()" * 1000)


def test_quotes_and_names_of_functions_are_told_apart():
    quoted = Nesting('<|call>f{a:<|"|>', '<|"|>}<call|>')
    assert not quoted.is_too_deep('<|call>f{a:<|"|>x<|"|>}<call|>' * 1000)
    named = Nesting("<function=f><parameter=a>", "</parameter></function>")
    assert named.is_too_deep("<function=g>" * (MAX_OPEN + 1))


@pytest.mark.parametrize(
    "name", sorted(set(OPENINGS) - {"llama3_1", "gptoss", "gemma3"})
)
def test_a_hundred_calls_in_a_turn_are_read(make_format, name):
    chat_format = make_format(name)
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": "find", "arguments": '{"order": "A (1) [x] {y}"}'},
        }
        for number in range(100)
    ]
    turn = {"role": "assistant", "content": "", "tool_calls": calls}
    ids = chat_format.assistant_turn(turn)
    read = chat_format.parse(ids)["tool_calls"]
    assert [call["function"]["name"] for call in read] == ["find"] * 100
