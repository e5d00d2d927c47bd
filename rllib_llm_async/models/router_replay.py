"""Router replay: passes of a mixture send each token to the experts that sampled it.

Which experts a token goes to is a step function of the router's logits: where two of
them are close, the numerics of engine and trainer choose differently, and r_d is then
the ratio of two different functions of the same weights. So the engine's choice comes
with the tokens and takes the place of the trainer's own, in every pass alike. What the
chosen experts weigh is still computed by the trainer's router, and its gradient flows
through that (arXiv 2510.11370).

The choice is an argument of the decoder, which hands it to its layers as it does with
the boundaries of sequences: a layer that is computed anew in the backward pass gets it
again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

#: The argument of the decoder: int16 ``[rows, length, layers, top_k]``, -1 where
#: nothing is known and the router chooses.
ROUTED_EXPERTS = "routed_experts"
#: Models whose routers weigh the chosen experts by a softmax over all of them, and
#: whether the weights are made to add up to 1; None: their ``norm_topk_prob`` says it.
_NORMALISED: dict[str, bool | None] = {
    "mixtral": True,
    "minimax": True,
    "olmoe": None,
    "qwen2_moe": None,
    "qwen3_moe": None,
    "qwen3_next": None,
}
_LAYER = re.compile(r"(.*\blayers\.(\d+))\.")
#: Arguments of an engine with which vLLM returns no experts, and the values without.
_NEEDED = {
    "enable_prefix_caching": (True, None),
    "pipeline_parallel_size": (1,),
    "decode_context_parallel_size": (1,),
    "prefill_context_parallel_size": (1,),
    "speculative_config": (None,),
}


class RouterReplay(NamedTuple):
    """Whether a run replays, or in words why a mixture's routing is not."""

    is_on: bool
    off_because: str | None


def router_replay(
    model: str, engine: Mapping[str, Any], *, trust_remote_code: bool
) -> RouterReplay:
    """What "auto" comes to, for a model and its engines.

    Args:
        model: Directory or hub name.
        engine: Arguments of `vllm.AsyncEngineArgs`.
        trust_remote_code: Run code that comes with the model.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError):
        return RouterReplay(False, None)  # whoever loads it says so
    text = config.get_text_config()
    if not any(
        (getattr(text, key, None) or 0) > 1
        for key in ("num_experts", "num_local_experts", "n_routed_experts")
    ):
        return RouterReplay(False, None)
    if text.model_type not in _NORMALISED:
        return RouterReplay(False, f"the routers of {text.model_type} are unknown")
    for key, values in _NEEDED.items():
        if key in engine and engine[key] not in values:
            reason = f"vLLM returns no experts with engine.{key}: {engine[key]}"
            return RouterReplay(False, reason)
    return RouterReplay(True, None)


def replay_routers(causal_lm: Any) -> bool:
    """Has the decoder's layers route by `ROUTED_EXPERTS`, wherever they are given it.

    Returns:
        Whether it does; False for a model without routers that are known.
    """
    config = causal_lm.config.get_text_config()
    if config.model_type not in _NORMALISED:
        return False
    normalised = _NORMALISED[config.model_type]
    if normalised is None:
        normalised = config.norm_topk_prob
    routers = _routers(causal_lm)
    for layer, number, router in routers:
        replayed = _Replayed(number, normalised)
        layer.register_forward_pre_hook(replayed.take, with_kwargs=True)
        router.register_forward_hook(replayed.route)
    return bool(routers)


@contextlib.contextmanager
def recorded_experts(causal_lm: Any) -> Iterator[dict[int, Tensor]]:
    """Within it the experts of the newest pass, by layer: int64 ``[tokens, top_k]``."""
    chosen: dict[int, Tensor] = {}
    hooks = [
        router.register_forward_hook(
            lambda module, args, output, number=number: chosen.__setitem__(
                number, output[2].detach()
            )
        )
        for _, number, router in _routers(causal_lm)
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def _routers(causal_lm: Any) -> list[tuple[nn.Module, int, nn.Module]]:
    """Decoder layers that have one, their numbers, and it."""
    found = []
    for path, module in causal_lm.named_modules():
        if type(module).__name__.endswith("TopKRouter"):
            layer, number = _LAYER.match(path).groups()  # type: ignore[union-attr]
            found.append((causal_lm.get_submodule(layer), int(number), module))
    return found


class _Replayed:
    """The choice of one layer, from its arguments to its router."""

    def __init__(self, number: int, normalised: bool) -> None:
        self._number = number
        self._normalised = normalised
        self._chosen: Tensor | None = None

    def take(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the layer; the attention in it need not know the argument."""
        routed = kwargs.get(ROUTED_EXPERTS)
        self._chosen = None
        if routed is not None:
            self._chosen = routed[:, :, self._number].flatten(0, 1)
        return args, {k: value for k, value in kwargs.items() if k != ROUTED_EXPERTS}

    def route(
        self, router: nn.Module, args: Any, output: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """After the router, whose output is logits, weights and chosen experts."""
        logits, weights, own = output
        if self._chosen is None:
            return output
        chosen = self._chosen.to(own.dtype)
        chosen = torch.where(chosen < 0, own, chosen)
        new = logits.softmax(-1, dtype=torch.float32).gather(-1, chosen)
        if self._normalised:
            new = new / new.sum(-1, keepdim=True)
        return logits, new.to(weights.dtype), chosen
