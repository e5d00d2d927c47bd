"""A model as its config describes it, whose tensors take no memory, and its passes.

What a pass takes is counted rather than reckoned: the model's own code runs over fake
tensors, and the storages that it makes are followed. Attention keeps what a fused
kernel keeps; how sequences share their beginnings, and an accelerator's own
workspaces, are not in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rllib_llm_async.core import head_logprobs
from rllib_llm_async.core.live_bytes import LiveBytes
from rllib_llm_async.core.logprobs import logit_chunk_tokens
from rllib_llm_async.models.attention import set_attention
from rllib_llm_async.models.causal_attention import forget_masks
from rllib_llm_async.models.causal_lm_policy import dtypes_of
from rllib_llm_async.models.layered_loading import empty_causal_lm, exchange
from rllib_llm_async.models.lm_head import decoder_name, head_of
from rllib_llm_async.models.loading import equipped, recomputed_layers
from rllib_llm_async.models.rounding import round_under_autocast


class WeightlessPolicy:
    """What a ``model_config`` of `HFCausalLM` describes; use within `weightless`.

    Attributes:
        config: Of the text model, as transformers has it.
        num_parameters: Of the bare model.
        lm: As it is trained, with adapters.
    """

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        self.compute_dtype, dtype = dtypes_of(model_config)
        lora = model_config["lora"]
        bare = empty_causal_lm(
            model_config["model"],
            dtype=dtype,
            trust_remote_code=model_config["trust_remote_code"],
        )
        self.config = bare.config.get_text_config()
        self.num_parameters = sum(p.numel() for p in bare.parameters())
        self.lm = equipped(
            bare,
            # Adapters that start at the model's weights are as large as others.
            lora=lora and {**lora, "init_lora_weights": True},
            gradient_checkpointing=model_config["gradient_checkpointing"],
        )
        self._causal_lm = self.lm if lora is None else self.lm.get_base_model()
        self._temperature = model_config["temperature"]
        self._logits_memory_bytes = model_config["logits_memory_bytes"]
        set_attention(self._causal_lm, "auto")
        if self.compute_dtype is not None:
            round_under_autocast(self._causal_lm, self.compute_dtype)

    def forget_data(self) -> None:
        """Has fake tensors in the place of all parameters and buffers."""
        own = [*self.lm.parameters(), *self.lm.buffers()]
        exchange(self.lm, own, [_fake(tensor) for tensor in own])

    def trainable(self) -> dict[str, nn.Parameter]:
        """By name, as sources of log pi_old see them."""
        return {n: p for n, p in self.lm.named_parameters() if p.requires_grad}

    def pass_bytes(self, tokens: int, *, backward: bool, keeps_casts: bool) -> int:
        """What one pass over one sequence takes at its peak, beside weights and
        gradients.

        Args:
            tokens: Of the sequence; log pi of all of them is computed.
            backward: There and back; False takes the way there, without gradients.
            keeps_casts: Whether weights in the compute dtype are kept over the pass.
        """
        for layer in recomputed_layers(self.lm):
            layer.training = True
        handles = [
            p.register_post_accumulate_grad_hook(_forget_gradient)
            for p in self.trainable().values()
        ]
        own = [*self.lm.parameters(), *self.lm.buffers()]
        try:
            with torch.set_grad_enabled(backward), _LiveBytes(but=own) as live:
                logp = self._logp(tokens, keeps_casts)
                if backward:
                    logp.sum().backward()
        finally:
            for handle in handles:
                handle.remove()
        return live.peak

    def _logp(self, tokens: int, keeps_casts: bool) -> torch.Tensor:
        sequence = torch.zeros(tokens, dtype=torch.int64)
        decoder = getattr(self._causal_lm, decoder_name(self._causal_lm))
        with self._numerics(keeps_casts):
            hidden = decoder(
                input_ids=sequence[None], use_cache=False
            ).last_hidden_state[0]
        hidden = hidden.to(self.compute_dtype)
        model_head = head_of(self._causal_lm)

        def head(states: torch.Tensor) -> torch.Tensor:
            with self._numerics(False):
                return model_head(states)

        return head_logprobs(
            hidden,
            head,
            sequence,
            temperature=self._temperature,
            chunk_tokens=logit_chunk_tokens(self._logits_memory_bytes, head, hidden),
        )

    def _numerics(self, keeps_casts: bool) -> torch.autocast:
        return torch.autocast(
            "cpu",
            dtype=self.compute_dtype,
            enabled=self.compute_dtype is not None,
            cache_enabled=keeps_casts,
        )


@contextlib.contextmanager
def weightless(model_config: Mapping[str, Any]) -> Iterator[WeightlessPolicy]:
    """Within it, tensors of this process take no memory.

    Raises:
        ValueError: If the model's config cannot be read or adapters do not fit it.
    """
    try:
        policy = WeightlessPolicy(model_config)
    except (OSError, KeyError, ImportError) as error:
        raise ValueError(
            f"model: cannot read the config of {model_config['model']!r} ({error})"
        ) from error
    forget_masks()
    try:
        with FakeTensorMode():
            policy.forget_data()
            yield policy
    finally:
        forget_masks()


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, tensor.requires_grad)
    return fake


def _forget_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _LiveBytes(LiveBytes):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._grouped_mm.default:
            # Without data it takes bfloat16 only, which is as good for counting.
            mat_a, mat_b, *others = args
            narrow = (mat_a.bfloat16(), mat_b.bfloat16(), *others)
            product = super().__torch_dispatch__(func, types, narrow, kwargs)
            return product.to(mat_a.dtype)
        return super().__torch_dispatch__(func, types, args, kwargs)
