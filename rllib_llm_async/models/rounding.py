"""Rounds the weights that autocast leaves alone.

Under autocast a linear layer rounds its matrix to the compute dtype. Embeddings, the
experts of a mixture and what else multiplies in its own way do not, but an engine of
that dtype holds all weights in it, and so do the snapshots of old versions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rllib_llm_async.models.published_weights import acting, is_adapter, outermost

_ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def round_under_autocast(causal_lm: nn.Module, dtype: torch.dtype) -> None:
    """Has all matrices of a model and its embeddings rounded where autocast is on.

    By hooks on modules, so that layers which the backward pass computes anew do the
    same again.
    """
    for _, module in outermost(causal_lm):
        bare = acting(module) if is_adapter(module) else module
        # The same as its weight rounded, without a copy of the table.
        if isinstance(bare, nn.Embedding) and (
            is_adapter(module) or type(bare) is nn.Embedding
        ):
            module.register_forward_hook(partial(_round_output, dtype))
    for module in causal_lm.modules():
        owns_matrix = any(p.dim() > 1 for p in module.parameters(recurse=False))
        if not owns_matrix or isinstance(module, _ROUNDED_BY_AUTOCAST):
            continue
        if type(module) is not nn.Embedding:
            module.register_forward_pre_hook(partial(_round_matrices, dtype))
            module.register_forward_hook(_put_back, always_call=True)


def _round_output(
    dtype: torch.dtype, module: nn.Module, inputs: Any, output: Tensor
) -> Tensor:
    return output.to(dtype) if _autocasts(output) else output


def _autocasts(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


def _round_matrices(dtype: torch.dtype, module: Any, inputs: Any) -> None:
    matrices = {
        name: parameter
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and parameter.dtype != dtype
    }
    if matrices and _autocasts(next(iter(matrices.values()))):
        module._matrices_before_rounding = matrices
        for name, parameter in matrices.items():
            module._parameters[name] = parameter.to(dtype)


def _put_back(module: Any, inputs: Any, output: Any) -> None:
    module._parameters.update(module.__dict__.pop("_matrices_before_rounding", {}))
