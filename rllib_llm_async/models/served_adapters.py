"""LoRA adapters in the form in which vLLM serves them, and which of them it can serve.

What travels are the two matrices of each adapted layer, with LoRA's factor (alpha / r,
or what a pattern or rsLoRA makes of it) multiplied into B: an engine then needs no
setting of the adapter but its rank, and holds the very bits that were published.

vLLM applies adapters to linear layers alone. What else PEFT can train is merged into
the weights (`models.published_weights`), by name.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rllib_llm_async.models.published_weights import is_adapter, outermost
from rllib_llm_async.settings.installed import source_of
from rllib_llm_async.settings.lora import STARTS_AT_WEIGHTS, is_made_of_weights

#: Ranks that vLLM makes room for (`vllm.config.lora.MaxLoRARanks`).
MAX_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Layers that vLLM's decoders have under the names of transformers, alone or stacked.
SERVED_LAYERS = frozenset(
    f"{name}_proj"
    for name in ("q", "k", "v", "o", "qkv", "gate", "up", "down", "gate_up")
)
#: What PEFT puts before the name of a layer.
_PREFIX = "base_model.model."
#: Where vLLM's models are, and another one's module as one of them imports it.
_VLLM_MODELS = "model_executor/models"
_IMPORTED_MODEL = re.compile(r"(?:\.|vllm\.model_executor\.models\.)(\w+)")


class ServedAdapters(NamedTuple):
    """What engines have to be ready for, or in words why adapters are merged.

    ``rank`` is the largest of any layer, ``layers`` the last parts of their names.
    """

    rank: int
    layers: tuple[str, ...]
    merged_because: str | None


def adapter_weights(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the matrices of an adapter under the names that PEFT saves them by.

    A is ``[rank, inputs]``, B, with LoRA's factor, ``[outputs, rank]``. Where weights
    are sharded, all learners have to iterate together.
    """
    for path, layer in _adapted(causal_lm):
        (adapter,) = layer.active_adapters
        for letter, factor in (("A", 1.0), ("B", layer.scaling[adapter])):
            matrix = getattr(layer, f"lora_{letter}")[adapter].weight.detach()
            if isinstance(matrix, DTensor):
                matrix = matrix.full_tensor()
            yield f"{_PREFIX}{path}.lora_{letter}.weight", factor * matrix


def _adapted(causal_lm: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((path, part) for path, part in outermost(causal_lm) if is_adapter(part))


def served_adapters(
    model: str, lora: Mapping[str, Any], *, trust_remote_code: bool
) -> ServedAdapters:
    """What ``lora`` makes of a model, found out without its weights.

    Args:
        model: Directory or hub name.
        lora: Arguments of `peft.LoraConfig`.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: If the model cannot be read, or adapted in this way.
    """
    return _served(
        model, json.dumps(lora, sort_keys=True, default=sorted), trust_remote_code
    )


@cache
def _served(model: str, lora: str, trust_remote_code: bool) -> ServedAdapters:
    from rllib_llm_async.models.adapter_names import PLACING, check_wholes
    from rllib_llm_async.models.loading import equipped, load_causal_lm

    settings = json.loads(lora)
    lm: Any = load_causal_lm(
        model, trust_remote_code=trust_remote_code, load_weights=False
    )
    if is_made_of_weights(settings):
        # Without them it can still be told whether the layers are there.
        check_wholes(lm, settings)
        placed = {key: settings[key] for key in PLACING if key in settings}
        if "target_modules" in placed:
            equipped(lm, lora=placed, gradient_checkpointing=False)
    else:
        lm = equipped(lm, lora=settings, gradient_checkpointing=False)
    reason = _unserved_setting(settings)
    if reason is not None:
        return ServedAdapters(0, (), reason)
    adapted = dict(_adapted(lm.get_base_model()))
    rank = max(rank for layer in adapted.values() for rank in layer.r.values())
    return ServedAdapters(
        rank=rank,
        layers=tuple(sorted({_last(path) for path in adapted})),
        merged_because=_unserved_part(lm.get_base_model(), adapted, rank),
    )


def _unserved_setting(lora: Mapping[str, Any]) -> str | None:
    for key in (
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "target_parameters",
        "trainable_token_indices",
    ):
        if lora.get(key):
            return f"lora.{key}"
    if lora.get("bias", "none") != "none":
        return f"lora.bias: {lora['bias']}"
    if lora.get("init_lora_weights") in STARTS_AT_WEIGHTS:
        return f"lora.init_lora_weights: {lora['init_lora_weights']}"
    return None


def _unserved_part(
    causal_lm: nn.Module, adapted: Mapping[str, Any], rank: int
) -> str | None:
    from peft.tuners.lora import Linear

    if any("experts" in path.split(".") for path, _ in causal_lm.named_modules()):
        return "a mixture of experts"
    for path, layer in adapted.items():
        is_linear = type(layer) is Linear and type(layer.base_layer) is nn.Linear
        if not is_linear or _last(path) not in SERVED_LAYERS:
            return f"an adapter of {path}"
    if rank > MAX_LORA_RANKS[-1]:
        return f"rank {rank}, above {MAX_LORA_RANKS[-1]}"
    name = type(causal_lm).__name__
    return None if vllm_serves_adapters(name) else f"the model {name}"


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def vllm_serves_adapters(architecture: str) -> bool:
    """Whether vLLM's model of that name takes adapters, from its source.

    Importing vLLM takes seconds, and engines would say it when they start.
    """
    registry = source_of("vllm", f"{_VLLM_MODELS}/registry.py")
    entry = re.search(rf'"{architecture}":\s*\(\s*"(\w+)",\s*"(\w+)"', registry)
    return entry is not None and _supports_lora(*entry.groups())


def _supports_lora(module: str, name: str) -> bool:
    """Of a class of vLLM's models, through those that it is made of."""
    tree = ast.parse(source_of("vllm", f"{_VLLM_MODELS}/{module}.py"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            bases = [ast.unparse(base) for base in node.bases]
            return "SupportsLoRA" in bases or any(
                _supports_lora(module, base) for base in bases
            )
        if isinstance(node, ast.ImportFrom) and name in {a.name for a in node.names}:
            origin = _IMPORTED_MODEL.fullmatch("." * node.level + (node.module or ""))
            return origin is not None and _supports_lora(origin[1], name)
    return False


def room_for(rank: int) -> int:
    """The least rank that vLLM makes room for and that holds this one."""
    return next(room for room in MAX_LORA_RANKS if room >= rank)
