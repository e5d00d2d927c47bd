"""Whether the adapters of a model can be trained here and served by an engine.

What is published of each adapted module is compared with what that module computes, and
tied weights with each other. A fresh adapter does nothing, so all that trains is
disturbed meanwhile, and restored bit by bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rllib_llm_async.models.published_weights import (
    acting,
    folded,
    is_adapter,
    outermost,
    published,
)

if TYPE_CHECKING:
    from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

#: Of a module's output, as a share of its largest element.
_ERROR_EXACT = 1e-4
_ERROR_LOW_PRECISION = 0.03
_NOISE = 0.05


class RefusedAdapterError(ValueError):
    """Names what cannot be adapted, from within a pass of the model."""


def check_adapters_are_lora(lm: Any) -> None:
    """Looks at what there is of adapters; needs no weights.

    Raises:
        ValueError: In one line.
    """
    kinds = [config.peft_type for config in getattr(lm, "peft_config", {}).values()]
    if kinds not in ([], ["LORA"]):
        raise ValueError(
            f"lora: the model has adapters of kind {', '.join(map(str, kinds))}; one "
            "LoRA adapter is what can be trained"
        )
    storages: dict[int, str] = {}
    for name, parameter in lm.named_parameters():
        if kinds and parameter.requires_grad and parameter.numel():
            other = storages.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise ValueError(
                    f"lora: {name} and {other} share memory and would be trained "
                    "twice; leave the tied embeddings out of target_modules"
                )


@contextlib.contextmanager
def disturbed(policy: CausalLMPolicy) -> Iterator[None]:
    """With adapters: all that trains is shifted by noise, and restored bit by bit."""
    trained = policy.trainable_parameters() if hasattr(policy.lm, "peft_config") else {}
    held = [_held(parameter) for parameter in trained.values()]
    originals = [tensor.clone() for tensor in held]
    generator = torch.Generator().manual_seed(0)
    try:
        for tensor in held:
            mean_square = tensor.float().square().sum() / max(tensor.numel(), 1)
            scale = max(_NOISE, 0.1 * float(mean_square.sqrt()))
            noise = scale * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.to(tensor))
        yield
    finally:
        for tensor, original in zip(held, originals, strict=True):
            tensor.copy_(original)


def _held(parameter: nn.Parameter) -> Tensor:
    """The memory of a parameter, or of this learner's share of it."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def adapters_compared(causal_lm: nn.Module, *, exact: bool) -> Iterator[None]:
    """Compares each adapted module that runs with what is published of it."""
    adapters = {n: m for n, m in outermost(causal_lm) if is_adapter(m)}
    limit = _ERROR_EXACT if exact else _ERROR_LOW_PRECISION
    silent = set(adapters)

    def check(name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if name not in silent:
            return
        silent.discard(name)
        try:
            weights = folded(module)
        except (RuntimeError, ValueError) as error:
            raise RefusedAdapterError(
                f"lora: {name}: {shorten(str(error), 500)}"
            ) from error
        bare = acting(module)
        for key, tensor in (*bare.named_parameters(), *bare.named_buffers()):
            if key in weights:
                weights[key] = weights[key].to(tensor.dtype)
        served = torch.func.functional_call(bare, weights, args, kwargs)
        error = _difference(out, served)
        if not error <= limit:
            raise RefusedAdapterError(
                f"lora: what an engine would be given of {name} computes something "
                f"else (off by {error:.1%}); leave it out of the adapters"
            )

    with contextlib.ExitStack() as stack:
        for name, module in adapters.items():
            handle = module.register_forward_hook(
                lambda *a, name=name: check(name, *a), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield
    # Which experts run is up to the router.
    unused = sorted(name for name in silent if ".experts." not in name)
    if unused:
        raise RefusedAdapterError(
            f"lora: the model does not run {unused[0]} as a module, so that its "
            "adapter has no effect; leave it out by exclude_modules"
        )


def _difference(output: Any, expected: Any) -> float:
    """Largest difference of two outputs of a module, as a share of their size."""
    if isinstance(output, tuple):
        return max(map(_difference, output, expected), default=0.0)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return 0.0
    size = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)
    return float((output - expected).abs().max() / size)


def check_tied_weights(lm: Any) -> None:
    """An engine holds tied tensors once, so their adapters must do the same."""
    if not hasattr(lm, "peft_config"):
        return
    by_origin: dict[int, tuple[str, Tensor]] = {}
    for name, tensor, origin in published(lm.get_base_model(), only_tied=True):
        other, first = by_origin.setdefault(id(origin), (name, tensor))
        if not torch.allclose(first.float(), tensor.float(), atol=1e-5):
            raise ValueError(
                f"lora: {other} and {name} are one tensor in the model and in the "
                "engine, and the adapters would make them differ; adapt neither, or "
                "put both into modules_to_save with ensure_weight_tying"
            )
