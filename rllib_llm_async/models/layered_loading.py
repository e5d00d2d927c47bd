"""A causal LM whose weights arrive layer by layer, for those who keep a part of each.

`from_pretrained` holds the whole model. Here a model begins without any memory for its
parameters; `read_layers` then fills one layer after the other, and whoever iterates
takes its share of a layer before the next one is read. Adapters are there from the
beginning: they are small, and no checkpoint of the model holds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from rllib_llm_async.models.published_weights import layer_of


def empty_causal_lm(
    model: str | Path, *, dtype: torch.dtype, trust_remote_code: bool
) -> nn.Module:
    """A causal LM of transformers with parameters on the meta device.

    Its buffers are as they should be. See `load_causal_lm` for the arguments.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with _parameters_without_memory():
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )


@contextlib.contextmanager
def _parameters_without_memory() -> Iterator[None]:
    def to_meta(module: nn.Module, name: str, parameter: Any) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # a tied one stays the same object
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def seemingly_in_memory(lm: nn.Module) -> Iterator[None]:
    """Has the parameters of an `empty_causal_lm` take one element of host memory each.

    PEFT makes adapters where the weights are.
    """
    waiting = [parameter for parameter in lm.parameters() if parameter.is_meta]
    stand_ins = [
        nn.Parameter(p.new_zeros((), device="cpu").expand(p.shape), p.requires_grad)
        for p in waiting
    ]
    exchange(lm, waiting, stand_ins)
    try:
        yield
    finally:
        for parameter, stand_in in zip(waiting, stand_ins, strict=True):
            parameter.requires_grad_(stand_in.requires_grad)
        exchange(lm, stand_ins, waiting)


def exchange(module: nn.Module, old: Iterable[Tensor], new: Iterable[Tensor]) -> None:
    """Puts tensors in the place of others, wherever a model has them; ties stay."""
    instead = dict(zip(map(id, old), new, strict=True))
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                tensors[name] = instead.get(id(tensor), tensor)


def is_empty(module: nn.Module) -> bool:
    """Whether some of its weights have not arrived."""
    return any(parameter.is_meta for parameter in module.parameters())


def read_layers(causal_lm: Any, model: str | Path) -> Iterator[None]:
    """Puts the weights of a checkpoint into an `empty_causal_lm`.

    Yields after each layer, and after the rest, which comes last. What one layer of the
    checkpoint holds makes up one of the model: transformers joins a mixture's experts
    and the like within layers.

    Raises:
        ValueError: In one line, if the checkpoint is not of this model or has no
            safetensors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    # One list for all layers: it keeps in mind which of them a checkpoint needs.
    conversions = get_model_conversion_mapping(causal_lm)
    files = _files_of_tensors(model)
    names = sorted(files, key=lambda name: (layer_of(name) == "", layer_of(name)))
    for _, layer in groupby(names, key=layer_of):
        _read(causal_lm, {name: files[name] for name in layer}, conversions, model)
        yield
    causal_lm.tie_weights()
    refuse_missing(
        model, [name for name, p in causal_lm.named_parameters() if p.is_meta]
    )
    yield


def refuse_missing(model: str | Path, names: Collection[str]) -> None:
    """Refuses a checkpoint without tensors of these names, if there are any."""
    if names:
        raise ValueError(
            f"model: {str(model)!r} lacks {len(names)} of the model's tensors, the "
            f"first is {min(names)}"
        )


def _files_of_tensors(model: str | Path) -> dict[str, str]:
    """By the name of a tensor, the file that holds it."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    files: Iterable[str]
    try:
        whole, index = (
            cached_file(model, name, _raise_exceptions_for_missing_entries=False)
            for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        )
        if whole is None and index is None:
            raise ValueError("no safetensors in it")
        files = [whole] if whole else get_checkpoint_shard_files(model, index)[0]
        of_tensors: dict[str, str] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                of_tensors |= dict.fromkeys(opened.keys(), file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"learner_sharding: cannot read {str(model)!r} layer by layer ({error}); "
            "give a model with safetensors, or set it to none"
        ) from error
    return of_tensors


def _read(
    causal_lm: Any, files: dict[str, str], conversions: list[Any], model: str | Path
) -> None:
    """Reads some tensors of a checkpoint into the model, as `from_pretrained` would."""
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    frozen = [n for n, p in causal_lm.named_parameters() if not p.requires_grad]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_bare(causal_lm))
        # Anew for each layer: what was read of a file counts as memory until it is
        # closed.
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in set(files.values())
        }
        info, _ = convert_and_load_state_dict_in_model(
            causal_lm,
            {name: opened[file].get_slice(name) for name, file in files.items()},
            LoadStateDictConfig(
                dtype=next(causal_lm.parameters()).dtype, weight_mapping=conversions
            ),
        )
    for name in frozen:
        causal_lm.get_parameter(name).requires_grad_(False)
    wrong = [*info.mismatched_keys, *info.conversion_errors]
    if wrong:
        raise ValueError(
            f"model: {str(model)!r} is not what its config.json says: {wrong[0]}"
        )


@contextlib.contextmanager
def _bare(causal_lm: nn.Module) -> Iterator[None]:
    """Takes PEFT's wrappers off the layers that wait for their weights, for a while.

    Their names are those of the checkpoint then.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {
        name: module
        for name, module in causal_lm.named_modules()
        if isinstance(module, BaseTunerLayer) and is_empty(module.get_base_layer())
    }
    try:
        for name, module in wrapped.items():
            causal_lm.set_submodule(name, module.get_base_layer())
        yield
    finally:
        for name, module in wrapped.items():
            causal_lm.set_submodule(name, module)
