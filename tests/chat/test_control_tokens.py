"""Text of messages is encoded as text, the template's own control tokens as such."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rllib_llm_async.chat.control_tokens import ControlTokens
from rllib_llm_async.models.small_agent import small_agent_dir


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(small_agent_dir())


@pytest.fixture(scope="module")
def control_tokens(tokenizer):
    return ControlTokens(tokenizer)


forged = st.lists(
    st.text(max_size=10)
    | st.sampled_from(["<|im_start|>", "<|im_end|>", "<tool_call>"])
).map("".join)


@settings(deadline=None)
@given(text=forged)
def test_broken_text_has_no_control_token_and_loses_no_character(
    tokenizer, control_tokens, text
):
    ids = control_tokens.encode(control_tokens.break_up(text))
    assert not set(ids) & set(control_tokens.ids.values())
    assert tokenizer.decode(ids) == text


@settings(deadline=None)
@given(text=forged)
def test_other_text_is_encoded_in_one_piece(tokenizer, control_tokens, text):
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert control_tokens.encode(text) == expected
    harmless = text.replace("<", "[")
    assert control_tokens.break_up(harmless) == harmless


def test_thousands_of_control_tokens_are_broken_one_by_one(tokenizer, control_tokens):
    text = "<|im_end|>" * 5000
    ids = control_tokens.encode(control_tokens.break_up(text))
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(control_tokens.ids.values())


def test_keys_and_values_of_data_are_broken(control_tokens):
    data = {"<|im_end|>": ["<|im_end|>", 1, None, {"a": "<|im_start|>"}]}
    broken = control_tokens.break_up_in(data)
    assert "<|im_" in str(broken)
    assert "<|im_end|>" not in str(broken) and "<|im_start|>" not in str(broken)
    assert control_tokens.break_up_in([1, 2.5, None, True]) == [1, 2.5, None, True]


def test_lone_surrogates_become_question_marks(control_tokens):
    assert control_tokens.break_up("a\ud83d") == "a?"


def test_overlapping_and_nested_tokens():
    special = ["<|a|>", "<|a|><|b|>", "|><|"]
    vocabulary = {c: i for i, c in enumerate("<|ab> xy")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.add_special_tokens([AddedToken(s, normalized=False) for s in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    control_tokens = ControlTokens(fast)
    for text in ("x<|a|><|b|>y", "<|a|><|a|>", "|><|a|><|", "<|a<|a|>|>"):
        ids = control_tokens.encode(control_tokens.break_up(text))
        assert not set(ids) & set(control_tokens.ids.values())
        assert "".join(fast.convert_ids_to_tokens(ids)) == text


def test_text_that_becomes_a_control_token_only_when_normalised():
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("<call>xCAL")}, []))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<call>", normalized=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    control_tokens = ControlTokens(fast)
    wide = "x\uff1ccall\uff1e"
    assert fast.convert_tokens_to_ids("<call>") in fast(wide)["input_ids"]
    ids = control_tokens.encode(control_tokens.break_up(wide))
    assert "".join(fast.convert_ids_to_tokens(ids)) == "x<call>"
    assert fast.convert_tokens_to_ids("<call>") not in ids


def test_the_second_half_is_no_beginning_of_a_text():
    """Where a text begins, this tokenizer (like Llama 2's) puts a space."""
    vocabulary = {c: i for i, c in enumerate("\u2581<s>xy")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    control_tokens = ControlTokens(fast)
    ids = control_tokens.encode("x" + control_tokens.break_up("<s>") + "y")
    assert "".join(fast.convert_ids_to_tokens(ids)) == "\u2581x<s>y"


def test_runs_of_spaces_are_no_control_tokens():
    tokenizer = Tokenizer(models.BPE({"x": 0, " ": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert ControlTokens(fast).break_up("x  x") == "x  x"
