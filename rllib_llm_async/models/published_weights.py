"""The weights of a causal LM as an engine loads them, adapters folded in.

Named and shaped as in the bare model: PEFT's wrappers leave no trace. How an adapter
is folded in is PEFT's own business (`merge`), done on a float32 copy of one layer.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

#: Up to the number of a layer: what transformers joins or splits lies within one.
_LAYER = re.compile(r"^.*?\.\d+\.")


class Published(NamedTuple):
    """A tensor of the bare model.

    ``origin`` is the bare model's own tensor, the same one for names that are tied.
    """

    name: str
    tensor: Tensor
    origin: Tensor


def inference_weights(causal_lm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields checkpoint-format weights under the names that a checkpoint has.

    One layer at a time, so that merging never holds a second model. transformers
    keeps a mixture's experts in one tensor, checkpoints and vLLM one by one. Of tied
    tensors the first is yielded, as in a checkpoint. Where weights are sharded, all
    learners have to iterate together.
    """
    from transformers.core_model_loading import revert_weight_conversion

    seen: set[int] = set()
    for _, layer in groupby(published(causal_lm), key=lambda p: layer_of(p.name)):
        tensors = {}
        for name, tensor, origin in layer:
            if id(origin) not in seen:
                seen.add(id(origin))
                tensors[name] = tensor
        yield from revert_weight_conversion(causal_lm, tensors).items()


def layer_of(name: str) -> str:
    """The beginning of a tensor's name up to the number of its layer; else empty."""
    match = _LAYER.match(name)
    return match[0] if match else ""


def published(causal_lm: nn.Module, *, only_tied: bool = False) -> Iterator[Published]:
    """Yields what a checkpoint of the bare model holds, with tied tensors repeated.

    Args:
        causal_lm: The transformers model.
        only_tied: Leave out the parts of the model that share no tensor with others.
    """
    parts = [(name, part, _own_tensors(part)) for name, part in outermost(causal_lm)]
    uses = Counter(id(tensor) for _, _, own in parts for tensor in own.values())
    for path, part, own in parts:
        if only_tied and all(uses[id(tensor)] == 1 for tensor in own.values()):
            continue
        prefix = f"{path}." if path else ""
        with _gathered(part):
            weights = folded(part) if is_adapter(part) else _own_tensors(part)
        for name, origin in own.items():
            yield Published(prefix + name, weights[name].detach(), origin)


@contextlib.contextmanager
def _gathered(part: nn.Module) -> Iterator[None]:
    """Whole parameters in place of the shares that this process may hold of them.

    Those that the part has itself; of an adapter all.
    """
    shares = [
        (module._parameters, name, parameter)
        for module in (part.modules() if is_adapter(part) else [part])
        for name, parameter in module._parameters.items()
        if isinstance(parameter, DTensor)
    ]
    try:
        for parameters, name, share in shares:
            parameters[name] = nn.Parameter(
                share.detach().full_tensor(), share.requires_grad
            )
        yield
    finally:
        for parameters, name, share in shares:
            parameters[name] = share


def _own_tensors(part: nn.Module) -> dict[str, Tensor]:
    """Those that a part of the model has itself; of an adapter the bare module's."""
    if is_adapter(part):
        return dict(_saved_tensors(_bare(part)))
    return dict(_saved_tensors(part, recurse=False))


def _saved_tensors(
    module: nn.Module, recurse: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that belong into a checkpoint."""
    for path, part in module.named_modules() if recurse else [("", module)]:
        prefix = f"{path}." if path else ""
        for name, parameter in part._parameters.items():
            if parameter is not None:
                yield prefix + name, parameter
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield prefix + name, buffer


def is_adapter(module: nn.Module) -> bool:
    """Whether PEFT put this module in the place of a bare one."""
    return type(module).__module__.startswith("peft.")


def outermost(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yields a model's modules with their names, adapters without their inside."""
    yield prefix.removesuffix("."), module
    if not is_adapter(module):
        for name, child in module.named_children():
            yield from outermost(child, f"{prefix}{name}.")


def _bare(adapter: Any) -> nn.Module:
    """The module that an adapter stands for, as it is without it."""
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(adapter, ModulesToSaveWrapper):
        return adapter.original_module
    return _tuner_layer(adapter).get_base_layer()


def _tuner_layer(adapter: Any) -> Any:
    from peft.utils.other import TrainableTokensWrapper

    if isinstance(adapter, TrainableTokensWrapper):
        return adapter.token_adapter
    return adapter


def acting(adapter: Any) -> nn.Module:
    """The bare module that, with the `folded` weights, does what the adapter does."""
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(adapter, ModulesToSaveWrapper):
        return adapter.modules_to_save[adapter.active_adapter]
    return _bare(adapter)


@torch.no_grad()
def folded(adapter: Any) -> dict[str, Tensor]:
    """An adapter's weights within those of its bare module, by its names."""
    from peft.utils.other import ModulesToSaveWrapper

    bare = acting(adapter)
    if isinstance(adapter, ModulesToSaveWrapper):
        return {name: tensor.detach() for name, tensor in _saved_tensors(bare)}
    tensors = dict(_saved_tensors(bare))
    originals = {name: tensor.data for name, tensor in tensors.items()}
    nested = list(_nested(_tuner_layer(adapter)))
    try:
        for tensor in tensors.values():
            if tensor.is_floating_point():
                wide = torch.promote_types(tensor.dtype, torch.float32)
                tensor.data = tensor.data.to(wide, copy=True)
        for layer in nested:
            layer.merge()
        return {name: tensor.data for name, tensor in tensors.items()}
    finally:
        for name, tensor in tensors.items():
            tensor.data = originals[name]
        for layer in nested:
            layer.merged_adapters.clear()


def _nested(layer: Any) -> Iterator[Any]:
    """A tuner layer and those around the same bare module within it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    while isinstance(layer, BaseTunerLayer):
        yield layer
        layer = layer.base_layer
