"""A Hugging Face causal LM as a policy over packed token rows: torch only, no RLlib.

`CausalLMPolicy` maps a row-packed batch to the log-probability of every agent token.
It is a plain `nn.Module`, so that a forward pass under other weights (EWMA,
snapshots) is `torch.func.functional_call` on it, without a second model object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rllib_llm_async import columns
from rllib_llm_async.core import token_logprobs
from rllib_llm_async.packing import micro_batches


def load_causal_lm(
    model: str | Path,
    *,
    lora: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Loads a causal LM for training, optionally wrapped in PEFT LoRA.

    Args:
        model: Local directory or hub name.
        lora: Keyword arguments of `peft.LoraConfig` (``r``, ``lora_alpha``,
            ``target_modules`` ...), or None for full fine-tuning.
        dtype: Of the weights; LoRA adapters are float32 all the same.
        gradient_checkpointing: Keep the layers' inputs only, and compute the rest
            anew in the backward pass.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ValueError: If the model cannot be read.
    """
    from transformers import AutoModelForCausalLM

    try:
        lm = AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model: cannot load {str(model)!r} ({error}); give a directory with "
            "config.json and weights, or a hub name"
        ) from error
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        lm = get_peft_model(lm, LoraConfig(task_type="CAUSAL_LM", **lora))
    return lm


class PolicyOutput(NamedTuple):
    """float32 per token: log pi, entropy if asked for, value if there is a head."""

    logp: Tensor
    entropy: Tensor | None
    values: Tensor | None


class CausalLMPolicy(nn.Module):
    """Per-token log-probabilities of a causal LM on row-packed sequences.

    Args:
        lm: A `transformers` causal LM or a PEFT model around one.
        temperature: Sampling temperature of the behaviour policy; logits are divided
            by it, so that pi and mu are distributions over the same support.
        chunk_tokens: Tokens per slice of the vocabulary projection.
        compute_dtype: Dtype of the forward pass, or None for the weights'. Every
            weight matrix is rounded to it before it is used (vectors are not), the
            embeddings too, as an engine of that dtype does.
        with_value_head: Adds a linear value head on the last hidden states; it starts
            at zero.
    """

    def __init__(
        self,
        lm: nn.Module,
        *,
        temperature: float = 1.0,
        chunk_tokens: int = 4096,
        compute_dtype: torch.dtype | None = None,
        with_value_head: bool = False,
    ) -> None:
        super().__init__()
        self.lm = lm
        self.value_head: nn.Linear | None = None
        if with_value_head:
            self.value_head = nn.Linear(self.causal_lm.config.hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.temperature = temperature
        self.chunk_tokens = chunk_tokens
        self.compute_dtype = compute_dtype

    @classmethod
    def from_config(cls, model_config: Mapping[str, Any]) -> CausalLMPolicy:
        """Loads what a ``model_config`` of `HFCausalLM` describes.

        With LoRA the frozen weights are in the compute dtype: master weights are for
        what trains.
        """
        name = model_config.get("compute_dtype")
        compute_dtype = getattr(torch, name) if name else None
        lora = model_config.get("lora")
        lm = load_causal_lm(
            model_config["model"],
            lora=lora,
            dtype=(compute_dtype if lora else None) or torch.float32,
            gradient_checkpointing=model_config.get("gradient_checkpointing", False),
            trust_remote_code=model_config.get("trust_remote_code", False),
        )
        return cls(
            lm,
            temperature=model_config.get("temperature", 1.0),
            compute_dtype=compute_dtype,
            with_value_head=model_config.get("with_value_head", False),
        )

    @property
    def causal_lm(self) -> nn.Module:
        """The bare transformers model, with PEFT's wrapper taken off."""
        return self.lm.get_base_model() if hasattr(self.lm, "peft_config") else self.lm

    def forward(
        self, batch: Mapping[str, Tensor], with_entropy: bool = False
    ) -> PolicyOutput:
        """Computes log pi(token) at every agent token.

        Args:
            batch: Row-packed columns ``tokens``, ``position_ids`` and ``loss_mask``,
                each ``[rows, length]``.
            with_entropy: Also return the entropy of each agent token's distribution.

        Returns:
            `PolicyOutput`, all ``[rows, length]`` and 0 outside the mask.
        """
        tokens, mask = batch[columns.TOKENS], batch[columns.LOSS_MASK]
        causal_lm = self.causal_lm
        with torch.autocast(
            tokens.device.type,
            dtype=self.compute_dtype,
            enabled=self.compute_dtype is not None,
        ):
            # No attention mask: transformers derives block-diagonal causal attention
            # from the restarting position ids. Only the last position has no target.
            embedded = causal_lm.get_input_embeddings()(tokens)
            hidden = causal_lm.get_decoder()(
                inputs_embeds=embedded.to(dtype=self.compute_dtype),
                position_ids=batch[columns.POSITION_IDS],
                use_cache=False,
            ).last_hidden_state
        target_mask = mask[:, 1:]
        before = hidden[:, :-1][target_mask].to(dtype=self.compute_dtype)
        result = token_logprobs(
            before,
            causal_lm.get_output_embeddings().weight,
            tokens[:, 1:][target_mask],
            temperature=self.temperature,
            chunk_tokens=self.chunk_tokens,
            with_entropy=with_entropy,
        )
        logp, entropy = result if with_entropy else (result, None)
        values = (
            None
            if self.value_head is None
            else self.value_head(before.float()).squeeze(-1)
        )
        return PolicyOutput(
            *(x if x is None else _scatter(x, mask) for x in (logp, entropy, values))
        )

    @torch.no_grad()
    def score(
        self,
        batch: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor] | None,
        max_tokens: int,
    ) -> Tensor:
        """log pi ``[rows, length]`` of many rows, without gradient.

        Args:
            batch: As in `forward`.
            parameters: Weights in place of the current ones; None takes these.
            max_tokens: Tokens in one pass.
        """
        replaced = dict(parameters or {})
        return torch.cat(
            [
                torch.func.functional_call(self, replaced, (rows,)).logp
                for rows in micro_batches(batch, max_tokens)
            ]
        )

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The policy's parameters that training changes; with LoRA the adapter's."""
        return {
            n: p
            for n, p in self.named_parameters()
            if p.requires_grad and not n.startswith("value_head.")
        }

    def reference_parameters(self) -> dict[str, Tensor]:
        """Copies of the trainable weights as they are now; none with LoRA.

        With LoRA the weights before training are the base model's: run the policy
        `without_adapters`.
        """
        if hasattr(self.lm, "peft_config"):
            return {}
        return {n: p.detach().clone() for n, p in self.trainable_parameters().items()}

    def without_adapters(self) -> contextlib.AbstractContextManager:
        """Switches LoRA adapters off; does nothing where there are none."""
        if hasattr(self.lm, "peft_config"):
            return self.lm.disable_adapter()
        return contextlib.nullcontext()

    def inference_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields checkpoint-format weights (LoRA merged) under their HF names.

        One tensor at a time, so that merging never holds a second model. transformers
        keeps a mixture's experts in one tensor, checkpoints and vLLM one by one.
        """
        from transformers.core_model_loading import revert_weight_conversion

        for name, weight in self._merged_weights():
            yield from revert_weight_conversion(self.causal_lm, {name: weight}).items()

    def _merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The weights with LoRA merged, named as in the loaded model."""
        if not hasattr(self.lm, "peft_config"):
            for name, parameter in self.lm.named_parameters():
                yield name, parameter.detach()
            return
        from peft.tuners.lora import LoraLayer

        merged = {
            name: module
            for name, module in self.causal_lm.named_modules()
            if isinstance(module, LoraLayer)
        }
        for name, parameter in self.causal_lm.named_parameters():
            owner, _, leaf = name.rpartition(".")
            if ".lora_" in name:
                continue
            if owner.endswith(".base_layer"):
                layer_name = owner.removesuffix(".base_layer")
                weight = parameter.detach()
                if leaf == "weight":
                    with torch.no_grad():
                        weight = weight + merged[layer_name].get_delta_weight("default")
                yield f"{layer_name}.{leaf}", weight
            else:
                yield name, parameter.detach()


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Puts ``[agent tokens]`` values back to ``[rows, length]``, 0 elsewhere."""
    full = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return full.masked_scatter(mask, values)
