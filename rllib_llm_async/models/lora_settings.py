"""Which `peft.LoraConfig` arguments mean the same to the trainer and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Arguments whose every value is right, or found out by the self-check.
_SUPPORTED = {
    "r",
    "lora_alpha",
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
#: Adapters that change nothing before training (the base model itself may change, as
#: long as it does so alike in every process).
_INITIALISATIONS = (True, "gaussian", "orthogonal", "pissa", "olora")


def lora_config(lora: Mapping[str, Any]) -> Any:
    """Checks the ``lora`` setting.

    Args:
        lora: Keyword arguments of `peft.LoraConfig`.

    Returns:
        The `peft.LoraConfig`.

    Raises:
        ValueError: In one line, if a value would make the trained and the served
            policy differ, or a pass that scores random.
    """
    from peft import LoraConfig

    config = _built(lora)
    if config.lora_dropout:
        raise ValueError(
            f"lora: lora_dropout {config.lora_dropout} would make the "
            "log-probabilities of the ratio random; leave it out (0 is the default)"
        )
    if not _is_any_of(config.init_lora_weights, _INITIALISATIONS):
        raise ValueError(
            f"lora: init_lora_weights {config.init_lora_weights!r} does not start at "
            "the model's own weights, or not alike in every process; "
            f"choose one of {', '.join(map(repr, _INITIALISATIONS))}"
        )
    default = LoraConfig(task_type="CAUSAL_LM")
    for key in set(lora) - _SUPPORTED:
        if getattr(config, key) != getattr(default, key):
            raise ValueError(
                f"lora: {key} {lora[key]!r} is nothing that published weights can "
                f"hold; choose from {', '.join(sorted(_SUPPORTED))}"
            )
    return config


def _built(lora: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"lora: {one_line(error)}") from error


def _is_any_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Like ``in``, but 1 is not True."""
    return any(type(value) is type(choice) and value == choice for choice in choices)


def one_line(error: Exception) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())
