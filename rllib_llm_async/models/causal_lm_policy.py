"""A Hugging Face causal LM as a policy over packed token rows: torch only, no RLlib.

`CausalLMPolicy` maps a row-packed batch to the log-probability of every agent token.
It is a plain `nn.Module`, so that a forward pass under other weights (EWMA,
snapshots) is `torch.func.functional_call` on it, without a second model object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.micro_batches import in_row_order, micro_batches
from rllib_llm_async.core import head_logprobs
from rllib_llm_async.core.collectives import max_over_learners
from rllib_llm_async.core.logprobs import LOGITS_MEMORY_BYTES, logit_chunk_tokens
from rllib_llm_async.models import published_weights, served_adapters
from rllib_llm_async.models.adapter_check import check_adapters_are_lora
from rllib_llm_async.models.attention import can_share_prefixes, set_attention
from rllib_llm_async.models.layered_loading import is_empty
from rllib_llm_async.models.lm_head import decoder_name, head_of
from rllib_llm_async.models.loading import load_causal_lm, recomputed_layers
from rllib_llm_async.models.rounding import round_under_autocast
from rllib_llm_async.models.router_replay import ROUTED_EXPERTS, replay_routers
from rllib_llm_async.models.self_check import check_policy
from rllib_llm_async.models.sequence_layout import (
    best_layout,
    check_lengths,
    hidden_states,
)

T = TypeVar("T")


class PolicyOutput(NamedTuple):
    """float32 per token: log pi, entropy if asked for, value if there is a head."""

    logp: Tensor
    entropy: Tensor | None
    values: Tensor | None


class CausalLMPolicy(nn.Module):
    """Per-token log-probabilities of a causal LM on row-packed sequences.

    They are those of ``lm(...).logits`` of each sequence alone; the constructor tries
    that (`models.self_check`). There is no dropout in any pass, in training neither:
    log pi and log pi_old are of one and the same function of the weights.

    Args:
        lm: A `transformers` causal LM or a PEFT model around one.
        temperature: Sampling temperature of the behaviour policy; logits are divided
            by it, so that pi and mu are distributions over the same support.
        logits_memory_bytes: What logits and their gradients may take.
        compute_dtype: Dtype of the forward pass, or None for the weights'. Every
            weight matrix is rounded to it before it is used (vectors are not), the
            embeddings too, as an engine of that dtype does.
        with_value_head: Adds a linear value head on the last hidden states; it starts
            at zero.
        attn_implementation: "auto", or an attention of transformers by its name.
        router_replay: Have a mixture take the experts that a batch tells.

    Raises:
        ValueError: If the model or its adapters cannot be done right.
    """

    def __init__(
        self,
        lm: nn.Module,
        *,
        temperature: float = 1.0,
        logits_memory_bytes: int = LOGITS_MEMORY_BYTES,
        compute_dtype: torch.dtype | None = None,
        with_value_head: bool = False,
        attn_implementation: str = "auto",
        router_replay: bool = False,
    ) -> None:
        super().__init__()
        check_adapters_are_lora(lm)
        self.lm = lm
        self.value_head: nn.Linear | None = None
        if with_value_head:
            hidden_size = self.causal_lm.config.get_text_config().hidden_size
            self.value_head = nn.Linear(hidden_size, 1)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.temperature = temperature
        self.logits_memory_bytes = logits_memory_bytes
        self._logit_chunk_tokens: int | None = None
        #: Over all passes, what sequences begin with in common counted once.
        self.num_computed_tokens = 0
        self.compute_dtype = compute_dtype
        set_attention(self.causal_lm, attn_implementation)
        if compute_dtype is not None:
            round_under_autocast(self.causal_lm, compute_dtype)
        #: Whether passes replay the routing that comes with a batch.
        self.replays_routers = router_replay and replay_routers(self.causal_lm)
        if not is_empty(lm):
            self.check()

    def check(self) -> None:
        """Chooses how sequences pass through the model, and tries it.

        The constructor does, unless the weights have not arrived.

        Raises:
            ValueError: If the model or its adapters cannot be done right.
        """
        #: How packed sequences pass through the decoder.
        self.layout = best_layout(self.causal_lm)
        #: Whether what sequences begin with in common is computed once in a pass.
        self.share_prefixes = self._has_prefix_attention()
        check_policy(self)

    @classmethod
    def from_config(cls, model_config: Mapping[str, Any]) -> CausalLMPolicy:
        """Loads what a ``model_config`` of `HFCausalLM` describes."""
        compute_dtype, dtype = dtypes_of(model_config)
        lm = load_causal_lm(
            model_config["model"],
            lora=model_config.get("lora"),
            dtype=dtype,
            gradient_checkpointing=model_config.get("gradient_checkpointing", False),
            trust_remote_code=model_config.get("trust_remote_code", False),
            load_weights=model_config.get("load_weights", True),
        )
        return cls(
            lm,
            temperature=model_config.get("temperature", 1.0),
            compute_dtype=compute_dtype,
            with_value_head=model_config.get("with_value_head", False),
            attn_implementation=model_config.get("attn_implementation", "auto"),
            router_replay=model_config.get("router_replay", False),
            logits_memory_bytes=model_config.get(
                "logits_memory_bytes", LOGITS_MEMORY_BYTES
            ),
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
                each ``[rows, length]``. With ``routed_experts`` tokens go to these
                experts, if this policy replays them.
            with_entropy: Also return the entropy of each agent token's distribution.

        Returns:
            `PolicyOutput`, all ``[rows, length]`` and 0 outside the mask.
        """
        tokens, mask = batch[columns.TOKENS], batch[columns.LOSS_MASK]
        before, head = self._hidden_before(batch), self._head()
        result = head_logprobs(
            before,
            head,
            tokens[mask],
            temperature=self.temperature,
            chunk_tokens=self._chunk_tokens(head, before),
            with_entropy=with_entropy,
        )
        logp, entropy = result if with_entropy else (result, None)
        return PolicyOutput(
            _scatter(logp, mask),
            None if entropy is None else _scatter(entropy, mask),
            None if self.value_head is None else self._values_at(before, mask),
        )

    def model_logits(self, tokens: Tensor) -> Tensor:
        """What `lm` itself says of one sequence, ``[tokens, vocabulary]``."""
        return self.lm(input_ids=tokens[None], use_cache=False).logits[0]

    def values(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`PolicyOutput.values` alone, for a policy with a value head: no logits."""
        return self._values_at(self._hidden_before(batch), batch[columns.LOSS_MASK])

    def _values_at(self, before: Tensor, mask: Tensor) -> Tensor:
        assert self.value_head is not None
        return _scatter(self.value_head(before.float()).squeeze(-1), mask)

    def _hidden_before(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states ``[agent tokens, hidden]`` that each of them is told from."""
        check_lengths(self.causal_lm, batch[columns.POSITION_IDS])
        self._settle_modes()
        targets = batch[columns.LOSS_MASK].flatten().nonzero().squeeze(1)
        with self.numerics():
            # What predicts a token is the state at the one before.
            before = self._hidden(batch, targets - 1)
        return before.to(dtype=self.compute_dtype)

    def _settle_modes(self) -> None:
        """No dropout, router noise and the like, whatever mode the module is in."""
        self.lm.eval()
        for layer in recomputed_layers(self.lm):
            layer.training = True

    def _hidden(self, batch: Mapping[str, Tensor], wanted: Tensor) -> Tensor:
        """Last hidden states ``[wanted, hidden]``, see `hidden_states`."""
        decoder = getattr(self.causal_lm, decoder_name(self.causal_lm))

        def decode(tokens: Tensor, **kwargs: Any) -> Tensor:
            self.num_computed_tokens += tokens.numel()
            return decoder(
                input_ids=tokens, use_cache=False, **kwargs
            ).last_hidden_state

        of_tokens = {}
        if self.replays_routers and columns.ROUTED_EXPERTS in batch:
            of_tokens[ROUTED_EXPERTS] = batch[columns.ROUTED_EXPERTS]
        return hidden_states(
            self.layout,
            decode,
            batch[columns.TOKENS],
            batch[columns.POSITION_IDS],
            wanted,
            of_tokens=of_tokens,
            share_prefixes=self._shares_prefixes(),
        )

    def _shares_prefixes(self) -> bool:
        """Whether it does so on the device that holds the model now."""
        return self.share_prefixes and self._has_prefix_attention()

    def _has_prefix_attention(self) -> bool:
        weight = next(self.lm.parameters())
        return can_share_prefixes(
            self.causal_lm, weight.device, self.compute_dtype or weight.dtype
        )

    def _head(self) -> Callable[[Tensor], Tensor]:
        """Hidden states ``[tokens, hidden]`` to logits, in this policy's numerics."""
        head = head_of(self.causal_lm)

        def logits(hidden: Tensor) -> Tensor:
            with self.numerics(cache_enabled=False):
                return head(hidden)

        return logits

    def _chunk_tokens(self, head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
        """Tokens that go through the head at a time, counted in the first pass."""
        if self._logit_chunk_tokens is None:
            self._logit_chunk_tokens = logit_chunk_tokens(
                self.logits_memory_bytes, head, hidden
            )
        return self._logit_chunk_tokens

    def numerics(self, *, cache_enabled: bool = True) -> torch.autocast:
        """A context in which the model computes as an engine of that dtype does."""
        return torch.autocast(
            next(self.lm.parameters()).device.type,
            dtype=self.compute_dtype,
            enabled=self.compute_dtype is not None,
            # Rounded copies of sharded weights would add up to a whole model.
            cache_enabled=cache_enabled and not self.is_sharded,
        )

    @property
    def is_sharded(self) -> bool:
        """Whether learners hold shares of the weights, gathered in each pass."""
        return isinstance(self, FSDPModule)

    def forget_cut_pass(self) -> None:
        """Readies sharded weights for the next pass after an error cut one short."""
        if isinstance(self, FSDPModule):
            self.reset_iter_state()

    def in_step(self, parts: Sequence[T]) -> Iterator[T]:
        """Yields the parts of this learner's next passes, to be made one by one.

        Where weights are sharded, a learner with fewer of them than another one then
        makes passes over nothing (and back, where gradients are on), since all have
        to gather the weights together.
        """
        most = len(parts)
        if self.is_sharded:  # all learners tell before anyone begins
            device = next(self.parameters()).device
            most = int(max_over_learners(torch.tensor(most, device=device)))
        yield from parts
        for _ in range(most - len(parts)):
            self._pass_over_nothing()

    def _pass_over_nothing(self) -> None:
        device = next(self.parameters()).device
        position_ids = torch.arange(2, device=device)[None]
        output = self(
            {
                columns.TOKENS: torch.zeros_like(position_ids),
                columns.POSITION_IDS: position_ids,
                columns.LOSS_MASK: torch.zeros_like(position_ids, dtype=torch.bool),
            }
        )
        if torch.is_grad_enabled():
            sum(x.sum() for x in output if x is not None).backward()

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
        parts = list(self.micro_batches(batch, max_tokens))
        return in_row_order(
            (rows, torch.func.functional_call(self, replaced, (part,)).logp)
            for rows, part in self.in_step(parts)
        )

    def micro_batches(
        self, batch: Mapping[str, Tensor], max_tokens: int
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Numbers and columns of the rows of each pass.

        Args:
            batch: Row-packed columns.
            max_tokens: What a pass computes at most, unless one row is more.
        """
        return micro_batches(batch, max_tokens, share_prefixes=self._shares_prefixes())

    def tokens_of_a_pass(self, batch: Mapping[str, Tensor], max_tokens: int) -> int:
        """What `score` would compute, without computing it."""
        count = 0

        def decode(tokens: Tensor, **kwargs: Any) -> Tensor:
            nonlocal count
            count += tokens.numel()
            return tokens[..., None]

        for _, part in self.micro_batches(batch, max_tokens):
            tokens = part[columns.TOKENS]
            hidden_states(
                self.layout,
                decode,
                tokens,
                part[columns.POSITION_IDS],
                tokens.new_zeros(0),
                share_prefixes=self._shares_prefixes(),
            )
        return count

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The policy's parameters that training changes; with LoRA the adapter's."""
        return {
            n: p
            for n, p in self.named_parameters()
            if p.requires_grad and not n.startswith("value_head.")
        }

    def inference_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what an engine loads, see `models.published_weights`."""
        return published_weights.inference_weights(self.causal_lm)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what an engine loads beside it, see `models.served_adapters`."""
        return served_adapters.adapter_weights(self.causal_lm)


def dtypes_of(
    model_config: Mapping[str, Any],
) -> tuple[torch.dtype | None, torch.dtype]:
    """The compute dtype of a policy, and the dtype of the weights that it loads.

    With LoRA the frozen weights are in the compute dtype: master weights are for what
    trains.
    """
    name = model_config.get("compute_dtype")
    compute_dtype = getattr(torch, name) if name else None
    frozen = compute_dtype if model_config.get("lora") else None
    return compute_dtype, frozen or torch.float32


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Puts ``[agent tokens]`` values back to ``[rows, length]``, 0 elsewhere."""
    full = torch.zeros(mask.shape, dtype=values.dtype, device=values.device)
    return full.masked_scatter(mask, values)
