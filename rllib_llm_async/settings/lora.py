"""What ``lora`` may hold: arguments of `peft.LoraConfig` that need no model to judge.

Whether the adapters of a model train and are served right is checked on the model.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from typing import Any

from rllib_llm_async.settings.installed import Argument, dataclass_fields, source_of
from rllib_llm_async.settings.names import did_you_mean
from rllib_llm_async.settings.reading import refused

#: Arguments that it has and that cannot be given, and why.
_REFUSED = {
    "task_type": "the policy is a causal language model; leave it out",
    "inference_mode": "adapters are there to be trained; leave it out",
    "peft_type": "the adapters are LoRA's; leave it out",
    "base_model_name_or_path": "the model is a setting of its own, `model`",
}
#: Arguments whose adapters can be folded into the weights that engines load.
_SERVED = {
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
    "init_lora_weights",
}
#: Adapters that change nothing before training. The base model itself may change, as
#: long as it does so alike in every process.
_STARTS = (True, "gaussian", "orthogonal", "pissa", "olora")
#: Of these, what PEFT works out from the model's weights, which it changes.
STARTS_AT_WEIGHTS = ("pissa", "olora")
#: Arguments by which an adapter holds weights of the model, or is worked out from them.
_OF_WEIGHTS = (
    "use_dora",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)
#: What PEFT itself would raise, and when: not before the model is loaded.
_BOUNDS = {"r": {"ge": 1}, "lora_alpha": {"gt": 0}, "lora_dropout": {"ge": 0, "lt": 1}}


def is_made_of_weights(lora: Mapping[str, Any] | None) -> bool:
    """Whether such adapters can only be made when the model has its weights."""
    if lora is None:
        return False
    return (
        lora.get("init_lora_weights") in STARTS_AT_WEIGHTS
        or lora.get("bias", "none") != "none"
        or any(lora.get(key) for key in _OF_WEIGHTS)
    )


def check_lora(lora: Mapping[str, Any] | None) -> None:
    """Checks the names in ``lora``, the types of their values, and what they mean.

    Raises:
        ValueError: Names the key, and what is valid.
    """
    valid = lora_arguments()
    for key, value in (lora or {}).items():
        if key in _REFUSED:
            raise ValueError(f"lora.{key}: {_REFUSED[key]}")
        if not valid:  # PEFT is not installed here
            continue
        if key not in valid:
            raise ValueError(
                f"lora.{key}: no argument of peft.LoraConfig{did_you_mean(key, valid)}"
            )
        words = valid[key].fault(value, {})
        if words is not None:
            raise refused(f"lora.{key}", value, words)
        if key not in _SERVED and value:
            raise ValueError(
                f"lora.{key}: got {value!r}, which weights that engines load cannot "
                f"hold; leave it out (possible are {', '.join(sorted(_SERVED))})"
            )
    start = (lora or {}).get("init_lora_weights", True)
    if start not in _STARTS:
        raise ValueError(
            f"lora.init_lora_weights: got {start!r}, must be one of "
            f"{', '.join(map(repr, _STARTS))}: training starts at the model's own "
            "weights, and alike in every process"
        )
    if lora and lora.get("lora_dropout"):
        raise ValueError(
            f"lora.lora_dropout: got {lora['lora_dropout']!r}, must be 0: dropout "
            "would be noise in the ratio of new to old probabilities"
        )


@cache
def lora_arguments() -> dict[str, Argument]:
    """Arguments of PEFT's `LoraConfig`, from its source; empty where it is missing."""
    source = source_of("peft", "tuners/lora/config.py")
    arguments = dataclass_fields(ast.parse(source), ["LoraConfig"])
    for key, bounds in _BOUNDS.items():
        if key in arguments:
            arguments[key].bounds = bounds
    return arguments
