"""Whether ``lora`` names layers that the model has.

PEFT passes in silence over a name that it does not find, as long as it finds another:
the layer that was meant then stays as it is, and only its curve would show it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

from rllib_llm_async.settings.names import unknown
from rllib_llm_async.settings.reading import refused

#: Arguments of `peft.LoraConfig` that say where adapters go, and how large they are.
PLACING = (
    "r",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)


def adaptable(lm: nn.Module) -> list[str]:
    """The last parts of the names of layers that adapters can go to."""
    kinds = (nn.Linear, nn.Embedding)
    return sorted(
        {
            path.rpartition(".")[2]
            for path, layer in lm.named_modules()
            if isinstance(layer, kinds)
        }
    )


def check_wholes(lm: nn.Module, lora: Mapping[str, Any]) -> None:
    """Checks the layers and parameters that are trained beside adapters, or as a whole.

    Args:
        lm: A model without adapters; needs no weights.
        lora: Arguments of `peft.LoraConfig`.

    Raises:
        ValueError: Names the key, and what is valid.
    """
    layers = [path for path, _ in lm.named_modules()]
    for name in lora.get("modules_to_save") or ():
        if not any(path.endswith(name) for path in layers):
            raise ValueError(f"lora.modules_to_save: {unknown(name, adaptable(lm))}")
    parameters = [path for path, _ in lm.named_parameters()]
    ends = sorted({".".join(path.split(".")[-2:]) for path in parameters})
    for name in lora.get("target_parameters") or ():
        if not _is_among(name, parameters):
            raise ValueError(f"lora.target_parameters: {unknown(name, ends)}")


def check_placed(
    lm: Any, lora: Mapping[str, Any], layers: Collection[str], valid: Iterable[str]
) -> None:
    """Checks where PEFT has put adapters against where they should go.

    Args:
        lm: A model with adapters.
        lora: Arguments of `peft.LoraConfig`.
        layers: Names of the model's layers, before it had them.
        valid: What a message names.

    Raises:
        ValueError: Names the key, and what is valid.
    """
    # Not what was given: PEFT writes old names of experts as those of today.
    (config,) = lm.peft_config.values()
    for key in ("target_modules", "exclude_modules"):
        names = getattr(config, key)
        for name in () if isinstance(names, str | None) else sorted(names):
            if not _is_among(name, layers):
                raise ValueError(f"lora.{key}: {unknown(name, valid)}")
    adapted = [
        *lm.base_model.targeted_module_names,
        *lm.base_model.targeted_parameter_names,
    ]
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern in lora.get(key) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", path) for path in adapted):
                ends = sorted({path.rpartition(".")[2] for path in adapted})
                raise ValueError(f"lora.{key}: {unknown(pattern, ends)}")
    numbers = lora.get("layers_to_transform")
    num_layers = lm.config.get_text_config().num_hidden_layers
    for number in [numbers] if isinstance(numbers, int) else numbers or ():
        if not 0 <= number < num_layers:
            words = f"numbers of layers, 0 to {num_layers - 1}"
            raise refused("lora.layers_to_transform", numbers, words)


def _is_among(name: str, paths: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for path in paths)
