"""Whatever a model writes as a tool call is read or refused, never raised."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.envs.tool_calls import encodable, parse_call

json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def call(name, written):
    return {"id": "c", "function": {"name": name, "arguments": written}}


@settings(deadline=None)
@given(st.text(min_size=1), st.dictionaries(st.text(), json_values))
def test_what_is_well_formed_comes_back(name, arguments):
    assert parse_call(call(name, json.dumps(arguments))) == (name, arguments)


@settings(deadline=None)
@given(
    json_values,
    json_values | st.binary() | st.text().filter(lambda text: "{" not in text),
)
def test_everything_else_is_malformed(name, written):
    assert parse_call(call(name, written))[1] is None


@pytest.mark.parametrize("broken", [None, "f", {}, {"function": None}, call("", "{}")])
def test_calls_without_a_name_are_malformed(broken):
    assert parse_call(broken) == ("", None)


def test_deep_arguments_are_malformed():
    # Around 1,000 the parser, the check or neither runs out of stack.
    for depth in [*range(1, 40), *range(850, 1001), 100_000]:
        written = '{"a":' * depth + "1" + "}" * depth
        assert (parse_call(call("f", written))[1] is not None) == (depth <= 20)


def test_lone_surrogates_are_malformed_or_replaced():
    assert parse_call(call("f", r'{"a": "\ud83d"}'))[1] is None
    assert parse_call(call("\ud83d", "{}")) == ("?", {})
    assert encodable("a\ud83d") == "a?"
