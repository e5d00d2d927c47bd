"""Builds the untrained small agent: a Qwen3 of 1.0M parameters and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
#: Plain tokens, not special ones: they are part of the text that the agent says.
MARKUP = ("<tool_call>", "</tool_call>")
#: Rotary positions need no table; the engine's max_model_len is the limit in use.
MAX_CONTEXT_TOKENS = 32768


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1280) -> Any:
    """Byte-level BPE with single digits, trained on ``texts``, Hermes chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Ids and prices are copied digit by digit.
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.add_tokens([AddedToken(text, normalized=False) for text in MARKUP])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        model_max_length=MAX_CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        Path(__file__).with_name("chat_template.jinja").read_text()
    )
    return tokenizer


def build_model(tokenizer: Any, seed: int) -> Any:
    """A Qwen3 with fresh weights, float32."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=MAX_CONTEXT_TOKENS,
            # With the usual 0.02 the embeddings of words that occur in the same places
            # grow together before the model tells them apart.
            initializer_range=0.1,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
