"""Loads a causal LM for training."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from rllib_llm_async.models.adapter_names import (
    adaptable,
    check_placed,
    check_wholes,
)
from rllib_llm_async.models.layered_loading import (
    empty_causal_lm,
    refuse_missing,
    seemingly_in_memory,
)
from rllib_llm_async.models.resolve import refuse_quantized
from rllib_llm_async.settings.lora import check_lora, is_made_of_weights

_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    ImportError,
    RuntimeError,
    SafetensorError,
)


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
    from transformers import AutoConfig

    check_lora(lora)
    load_weights = load_weights or is_made_of_weights(lora)
    with _unreadable_in_one_line(model):
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    refuse_quantized(str(model), config.to_dict())
    load = _with_all_weights if load_weights else empty_causal_lm
    lm = load(model, dtype=dtype, trust_remote_code=trust_remote_code)
    return equipped(lm, lora=lora, gradient_checkpointing=gradient_checkpointing)


@cache
def check_weights(model: str, *, trust_remote_code: bool) -> None:
    """Refuses a directory that does not hold the whole model; reads headers alone.

    Of a hub's model nothing is known before it is loaded.

    Args:
        model: Directory or hub name.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: Names the first tensor that is not there, or of another shape.
    """
    if os.path.isdir(model):
        with _without_a_report():
            _with_all_weights(
                model,
                dtype=torch.float32,
                trust_remote_code=trust_remote_code,
                device_map="meta",
            )


@contextlib.contextmanager
def _without_a_report() -> Iterator[None]:
    """Has transformers say nothing of what it loads, since nothing is."""
    from transformers.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    reports = logging.getLogger("transformers")
    level, shows_bars = reports.level, is_progress_bar_enabled()
    reports.setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        yield
    finally:
        reports.setLevel(level)
        if shows_bars:
            enable_progress_bar()


def _with_all_weights(
    model: str | Path, *, dtype: torch.dtype, trust_remote_code: bool, **kwargs: Any
) -> nn.Module:
    """Transformers would draw by chance what the checkpoint does not have."""
    from transformers import AutoModelForCausalLM

    with _unreadable_in_one_line(model):
        lm, found = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **kwargs,
        )
    refuse_missing(model, found["missing_keys"])
    for name, here, of_model in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"model: {str(model)!r} has {name} of shape {tuple(here)}, by its config "
            f"it would be {tuple(of_model)}"
        )
    return lm


@contextlib.contextmanager
def _unreadable_in_one_line(model: str | Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(
            f"model: cannot load {str(model)!r} ({shorten(str(error), 500)}); give a "
            "directory with config.json and weights, or a hub name"
        ) from error


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
        # Not a closure: in a copy of the model it is to be the copy's layer.
        layer._gradient_checkpointing_func = partial(
            _without_training_mode, layer, layer._gradient_checkpointing_func
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


def _without_training_mode(
    layer: nn.Module, checkpoint: Callable, run: Callable, *args: Any
) -> Any:
    def run_in_eval_mode(*inputs: Any) -> Any:
        mode, layer.training = layer.training, False
        try:
            return run(*inputs)
        finally:
            layer.training = mode

    return checkpoint(run_in_eval_mode, *args)
