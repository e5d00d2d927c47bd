"""A device that there is not, for Learners that are tested where there is no GPU.

The CPU computes for it, but its tensors are not the CPU's: where both meet in one
operation, or NumPy is given one, an error is raised as on a GPU. It has no autocast and
no gradient checkpointing. Importing this changes torch for the whole process.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "elsewhere"
#: Go between devices.
TRAVELS = ("aten::_to_copy", "aten::copy_", "aten::_local_scalar_dense")
#: May have the CPU's tensors as indices.
INDEXES = (
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
)


class Elsewhere(Tensor):
    """A tensor of this device; ``here`` is what the CPU computes with."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        tensor.here = here
        return tensor

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {NAME} device type tensor to numpy")

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return attention(*args, **kwargs)
        if func is Tensor.new_tensor:
            return torch.tensor(*args[1:], **kwargs).to(args[0].device)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, *args, **(kwargs or {}))


def computed(func, *args, **kwargs):
    """What an operation returns: on the device if it is asked for, else where its
    tensors are.
    """
    name = func._schema.name
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    hosts = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    if name in INDEXES and isinstance(args[0], Elsewhere):
        hosts = []
    if 0 < len(hosts) < len(tensors) and name not in TRAVELS:
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise RuntimeError(f"{name}: tensors of both devices, {shapes}")
    stays = name != "aten::copy_" or isinstance(args[0], Elsewhere)
    asked = kwargs.get("device")
    if asked is not None:
        stays = torch.device(asked).type == NAME
        kwargs = {**kwargs, "device": "cpu"}
    here_args, here_kwargs = tree_map_only(Elsewhere, lambda t: t.here, (args, kwargs))
    result = func(*here_args, **here_kwargs)
    if not stays:
        return result
    result = tree_map_only(Tensor, Elsewhere, result)
    if asked is not None or not tensors:
        return result
    return return_and_correct_aliasing(func, args, kwargs, result)


def attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None,
    enable_gqa=False,
):  # fmt: skip
    """`scaled_dot_product_attention`, which has no kernel for this device."""
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(times, -3) for t in (key, value))
    scores = query @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
    if is_causal:
        size = scores.shape[-2:]
        attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        else:
            scores = scores + attn_mask
    return scores.softmax(-1).to(value.dtype) @ value


class MadeHere(TorchFunctionMode):
    """`torch.tensor` fills storage that no dispatch sees: the CPU's, which is sent."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None:
            return func(*args, **{**kwargs, "device": "cpu"}).to(device)
        return func(*args, **kwargs)


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self):  # autocast asks for it even where it is off
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
# A module that travels keeps its parameters, and which of them are tied.
torch.__future__.set_swap_module_params_on_conversion(True)
DEVICE = torch.device(NAME, 0)
_FALLBACK = torch.library.Library("_", "IMPL")
_FALLBACK.fallback(computed, "PrivateUse1")
