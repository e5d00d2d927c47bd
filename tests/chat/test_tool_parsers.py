"""Calls in what a model wrote, where no vLLM is needed."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_llm_async.chat.harmony import parse_harmony
from rllib_llm_async.chat.tool_parsers import (
    check_tool_parser_name,
    decode_twice,
    parse_hermes,
    tool_parser_names,
)
from rllib_llm_async.engine import NO_REGISTRATION


def hermes(name, arguments):
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


texts = st.text() | st.sampled_from(["</tool_call>", "<tool_call>", "</think>"])


@given(st.lists(st.dictionaries(st.text(), texts), min_size=1, max_size=3), st.text())
def test_hermes_calls_come_back_whatever_their_arguments_hold(arguments, said):
    said = said.replace("<", "")
    text = said + "\n".join(hermes("f", values) for values in arguments)
    assert parse_hermes(text, ()) == (
        said,
        [("f", json.dumps(values)) for values in arguments],
    )


@pytest.mark.parametrize(
    "text, raw",
    [
        ("<tool_call>{oops}</tool_call>", "{oops}"),
        ('<tool_call>{"name": "f"', '{"name": "f"'),
        ('<tool_call>{"name": "f"}</tool_call>', '{"name": "f"}'),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', "{}"),
        ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>', None),
        ("<tool_call>[1]</tool_call>", "[1]"),
        ("<tool_call>", ""),
        ("<tool_call>" + "[" * 100_000, "[" * 100_000),
    ],
)
def test_a_malformed_hermes_call_has_no_name(text, raw):
    said, ((name, arguments),) = parse_hermes(text, ())
    assert said == name == ""
    if raw is None:
        assert arguments.endswith("}}}")
    else:
        assert arguments == raw


def test_one_malformed_call_leaves_the_others():
    text = f"{hermes('f', {})}<tool_call>oops</tool_call>{hermes('g', {'a': 1})}"
    _, calls = parse_hermes(text, ())
    assert calls == [("f", "{}"), ("", "oops"), ("g", '{"a": 1}')]


@pytest.mark.parametrize(
    "written, read",
    [
        (json.dumps(json.dumps({"a": 1})), '{"a": 1}'),
        ('{"a": 1}', '{"a": 1}'),
        ('"text"', '"text"'),
        ('"[1]"', '"[1]"'),
        ("oops", "oops"),
    ],
)
def test_arguments_as_a_json_string_are_decoded_if_they_are_an_object(written, read):
    assert decode_twice(written) == read


CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


@pytest.mark.parametrize(
    "text, said, calls",
    [
        ("<|channel|>final<|message|>hello", "hello", []),
        (
            "<|channel|>analysis<|message|>lie?<|end|>"
            "<|start|>assistant<|channel|>final<|message|>no",
            "no",
            [],
        ),
        ("<|channel|>analysis<|message|>lie", "", []),
        ("<|channel|>ana", "", []),
        (
            "<|channel|>commentary<|message|>one moment<|end|><|start|>assistant"
            ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}',
            "one moment",
            [("f", '{"a": 1}')],
        ),
        (
            f'{CALL}{{"a": "the <|call|> tag"}}',
            "",
            [("f", '{"a": "the <|call|> tag"}')],
        ),
        (f'{CALL}{{"a": "the <|end|>', "", [("f", '{"a": "the')]),
        ("plain", "plain", []),
        (
            "<|channel|>commentary to=find <|constrain|>json<|message|>{}",
            "",
            [("find", "{}")],
        ),
        (
            "<|channel|>commentary to=orders.find<|channel|>x<|message|>{}",
            "",
            [("orders.find", "{}")],
        ),
        (
            "<|channel|>commentary to=functions.python<|message|>{}",
            "",
            [("python", "{}")],
        ),
        ("<|channel|>commentary to=python code<|message|>print(1)", "", []),
        ("<|channel|>commentary to=browser.search <|message|>{}", "", []),
        ("<|channel|>analysis to=assistant<|message|>hm", "", []),
    ],
)
def test_harmony(text, said, calls):
    assert parse_harmony(text) == (said, calls)


def test_names_are_vllms_and_an_unknown_one_lists_them():
    from vllm.tool_parsers import ToolParserManager

    assert set(ToolParserManager.list_registered()) <= set(tool_parser_names())
    with pytest.raises(
        ValueError, match=r"tool_parser: got 'xml', .*auto.*qwen3_coder"
    ):
        check_tool_parser_name("xml")


def test_the_bundled_agent_needs_no_vllm():
    code = (
        "import sys\n"
        "from rllib_llm_async.chat.check import check_chat_format\n"
        "from rllib_llm_async.models.small_agent import small_agent_dir\n"
        "check_chat_format(str(small_agent_dir()))\n"
        "assert 'vllm' not in sys.modules\n"
    )
    env = {**os.environ, NO_REGISTRATION: "1"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)
