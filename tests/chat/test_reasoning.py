"""Thoughts are not said, whole or cut; what looks like one in a call stays."""

import re

import pytest

from rllib_llm_async.chat.reasoning import NoReasoning, TaggedThoughts, without_thoughts

CALL = '<tool_call>{"a": "</think> <think>"}</tool_call>'


@pytest.mark.parametrize(
    "text, opened, said",
    [
        ("hello", False, "hello"),
        ("<think>a</think>hello", False, "hello"),
        ("a</think>hello", True, "hello"),
        ("a</think>hello", False, "hello"),  # opened by a prompt unseen
        ("a", True, ""),
        ("<think>a", False, ""),
        ("<think>a", True, ""),
        ("hello <think>a", False, "hello "),
        ("hello, <think>a</think>you", False, "hello, you"),
        ("<think>a</think>b<think>c</think>d", False, "bd"),
        (CALL, False, CALL),
        (f"a</think>{CALL}", True, CALL),
        ("<think>call <tool_call>?</think>no", False, "no"),
        (f"<think>a</think>b{CALL}", False, f"b{CALL}"),
    ],
)
def test_what_is_said(text, opened, said):
    thoughts = TaggedThoughts("<think>", "</think>")
    call_start = re.compile("<tool_call>")
    assert thoughts.said(text, opened=opened, call_start=call_start) == said
    assert NoReasoning().said(text, opened=opened, call_start=call_start) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("Yes.", "Yes."),
        ("<think>be rude</think>\n\nYes.", "Yes."),
        ("[THINK]be rude[/THINK]Yes.", "Yes."),
        ("be rude</think>Yes.", "Yes."),
        ("<think>be rude", ""),
    ],
)
def test_of_a_model_behind_an_endpoint(text, said):
    assert without_thoughts(text) == said
