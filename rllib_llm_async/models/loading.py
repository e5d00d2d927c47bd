"""Loads a causal LM for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from rllib_llm_async.models.adapter_names import (
    adaptable,
    check_placed,
    check_wholes,
)
from rllib_llm_async.models.layered_loading import (
    empty_causal_lm,
    seemingly_in_memory,
)
from rllib_llm_async.settings.lora import check_lora, is_made_of_weights


def load_causal_lm(
    model: str | Path,
    *,
    lora: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    load_weights: bool = True,
) -> nn.Module:
    """Loads a causal LM for training, optionally wrapped in PEFT LoRA.

    Args:
        model: Local directory or hub name.
        lora: Keyword arguments of `peft.LoraConfig` (``r``, ``lora_alpha``,
            ``target_modules`` ...), or None for full fine-tuning.
        dtype: Of the weights; with LoRA, what trains is float32 all the same.
        gradient_checkpointing: Keep the layers' inputs only, and compute the rest
            anew in the backward pass.
        trust_remote_code: Run code that comes with the model.
        load_weights: False leaves them to `read_layers`, but where ``lora`` is made of
            weights.

    Raises:
        ValueError: If the model cannot be read, or a setting cannot be done right.
    """
    from transformers import AutoModelForCausalLM

    check_lora(lora)
    load_weights = load_weights or is_made_of_weights(lora)
    try:
        load = AutoModelForCausalLM.from_pretrained if load_weights else empty_causal_lm
        lm = load(model, dtype=dtype, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"model: cannot load {str(model)!r} ({shorten(str(error), 500)}); give a "
            "directory with config.json and weights, or a hub name"
        ) from error
    return equipped(lm, lora=lora, gradient_checkpointing=gradient_checkpointing)


def equipped(
    lm: nn.Module, *, lora: Mapping[str, Any] | None, gradient_checkpointing: bool
) -> nn.Module:
    """A causal LM of transformers as it is trained; see `load_causal_lm`."""
    if lora is not None:
        lm = _with_lora(lm, lora)
    if gradient_checkpointing:
        _checkpoint_layers(lm)
    return lm.eval()


def _with_lora(lm: Any, lora: Mapping[str, Any]) -> nn.Module:
    from peft import LoraConfig, get_peft_model
    from peft.utils.error import NoMatchingPeftModuleError

    check_wholes(lm, lora)
    layers, valid = [path for path, _ in lm.named_modules()], adaptable(lm)
    try:
        with seemingly_in_memory(lm):
            lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", **lora))
    except NoMatchingPeftModuleError as error:
        names = f"layers of the model are {', '.join(valid)}"
        raise ValueError(f"lora: {shorten(str(error), 500)} ({names})") from error
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"lora: {shorten(str(error), 500)}") from error
    check_placed(lm, lora, layers, valid)
    for parameter in lm.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return lm


def _checkpoint_layers(lm: Any) -> None:
    """Has each layer computed anew in the backward pass, without its dropout.

    transformers does it in training mode alone; the policy sets that mode on the layer
    (`recomputed_layers`), and here it is taken back while the layer computes.
    """
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    layers = recomputed_layers(lm)
    if not layers:
        raise ValueError(
            f"gradient_checkpointing: {type(lm).__name__} has no layers that "
            "transformers can compute anew; set it to false"
        )
    for layer in layers:
        layer._gradient_checkpointing_func = _without_training_mode(
            layer, layer._gradient_checkpointing_func
        )


def recomputed_layers(lm: nn.Module) -> list[Any]:
    """The layers of which the backward pass computes the inside anew."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        module
        for module in lm.modules()
        if isinstance(module, GradientCheckpointingLayer)
        and module.gradient_checkpointing
    ]


def _without_training_mode(layer: nn.Module, checkpoint: Callable) -> Callable:
    def checkpointed(run: Callable, *args: Any) -> Any:
        def run_in_eval_mode(*inputs: Any) -> Any:
            mode, layer.training = layer.training, False
            try:
                return run(*inputs)
            finally:
                layer.training = mode

        return checkpoint(run_in_eval_mode, *args)

    return checkpointed
