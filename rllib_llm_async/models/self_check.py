"""Whether a policy is its model: tried on a few short sequences when it is built.

- Log-probabilities, packed, with a shared prefix and alone, against
  ``lm(...).logits`` with the attention of transformers; where packed sequences see each
  other, the policy lays them out in another way, at last each in a row of its own.
  Sliding windows are shorter than the sequences meanwhile.
- Adapters, see `adapter_check`.
- The replay of a mixture's own routing, where it replays.

A few passes over some 70 tokens; one adapted module at a time is held twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.models.adapter_check import (
    RefusedAdapterError,
    adapters_compared,
    check_tied_weights,
    disturbed,
)
from rllib_llm_async.models.attention import PLAIN, is_packed, plain_attention
from rllib_llm_async.models.router_replay import recorded_experts
from rllib_llm_async.models.sequence_layout import (
    Layout,
    best_layout,
    window_is_a_limit,
)

if TYPE_CHECKING:
    from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

logger = logging.getLogger(__name__)

# The middle one lies behind one sequence and before another in the packed row.
_LENGTHS = (24, 9, 40)
#: Of sliding windows.
_WINDOW = 7


class _Limit(NamedTuple):
    """Nats: the largest error in float32, the mean error in a narrower dtype."""

    float32: float
    narrower: float


# Faults are tenths of nats and more. Alone, the same kernels compute the same.
_ALONE = _Limit(5e-4, 0.02)
_PACKED = _Limit(5e-4, 0.25)
# Of what the other sequences of a row change. With equal shapes it is nothing at all,
# but for the experts of a mixture.
_LEAK = _Limit(1e-4, 1e-3)


@torch.no_grad()
def check_policy(policy: CausalLMPolicy) -> None:
    """Tries a policy; lays out its sequences in another way where that is needed.

    Raises:
        ValueError: In one line, if the policy or what it publishes is not its model.
    """
    name = type(policy.causal_lm).__name__
    with disturbed(policy), _short_windows(policy.causal_lm):
        sequences = _sequences(policy)
        try:
            with (
                plain_attention(policy.causal_lm),
                adapters_compared(policy.causal_lm, exact=_is_float32(policy)),
            ):
                expected = [_logp_of_model(policy, tokens) for tokens in sequences]
        except RefusedAdapterError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            with_adapters = hasattr(policy.lm, "peft_config")
            raise ValueError(
                f"{'lora' if with_adapters else 'model'}: {name} cannot run"
                f"{' with these adapters' if with_adapters else ''}: "
                f"{shorten(str(error), 500)}"
            ) from error
        check_tied_weights(policy.lm)
        fault = _fault(policy, sequences, expected)
        while fault and policy.layout is not Layout.SEQUENCE_PER_ROW:
            _take_next_layout(policy)
            logger.info("%s: %s, since %s", name, policy.layout.value, fault)
            fault = _fault(policy, sequences, expected)
        if fault:
            raise ValueError(
                f"model: {name} is not computed right: {fault}; choose another model"
            )
        _check_replay(policy, sequences[-1])


def _take_next_layout(policy: CausalLMPolicy) -> None:
    """The layout to try where the present one is at fault."""
    if policy.share_prefixes:
        policy.share_prefixes = False
    elif is_packed(policy.causal_lm):
        policy.causal_lm.set_attn_implementation(PLAIN)
        policy.layout = best_layout(policy.causal_lm)
    else:
        policy.layout = Layout.SEQUENCE_PER_ROW


@contextlib.contextmanager
def _short_windows(causal_lm: Any) -> Iterator[None]:
    """Within it sliding windows are so short that the sequences reach beyond them."""
    config = causal_lm.config.get_text_config()
    parts = {id(part): part for part in (causal_lm.config, config)}
    for module in causal_lm.modules():
        parts[id(module)] = module
    windows = {
        key: part.sliding_window
        for key, part in parts.items()
        if isinstance(getattr(part, "sliding_window", None), int)
        and not window_is_a_limit(config)
    }
    try:
        for key in windows:
            parts[key].sliding_window = _WINDOW
        yield
    finally:
        for key, window in windows.items():
            parts[key].sliding_window = window


def _is_float32(policy: CausalLMPolicy) -> bool:
    dtypes = {p.dtype for p in policy.lm.parameters() if p.is_floating_point()}
    return dtypes | {policy.compute_dtype} <= {torch.float32, torch.float64, None}


# --- Log-probabilities ----------------------------------------------------------------


def _sequences(policy: CausalLMPolicy) -> list[Tensor]:
    """Random tokens, without those that the configuration gives a meaning."""
    config = policy.causal_lm.config
    special = {
        value
        for part in (config, config.get_text_config())
        for key, value in part.to_dict().items()
        if key.endswith(("_token_id", "_token_index")) and isinstance(value, int)
    }
    vocabulary = config.get_text_config().vocab_size
    usual = torch.tensor([t for t in range(vocabulary) if t not in special])
    generator = torch.Generator().manual_seed(0)
    device = next(policy.lm.parameters()).device
    sequences = [
        usual[torch.randint(len(usual), (length,), generator=generator)].to(device)
        for length in _LENGTHS
    ]
    # Begins as the last one does, then goes on as the first.
    return [*sequences, torch.cat([sequences[-1][:-5], sequences[0]])]


def _logp_of_model(policy: CausalLMPolicy, tokens: Tensor) -> Tensor:
    """log pi float32 ``[tokens - 1]`` of one sequence from ``lm(...).logits``."""
    policy.lm.eval()
    with policy.numerics():
        logits = policy.model_logits(tokens)[:-1]
    logp = (logits.float() / policy.temperature).log_softmax(-1)
    return logp.gather(-1, tokens[1:, None]).squeeze(-1)


def _logp_of_policy(
    policy: CausalLMPolicy,
    rows: list[list[Tensor]],
    routed_experts: Tensor | None = None,
) -> list[Tensor]:
    """log pi ``[tokens - 1]`` of each sequence, packed into rows as given."""
    length = max(sum(map(len, row)) for row in rows)
    tokens = rows[0][0].new_zeros(len(rows), length)
    position_ids = torch.zeros_like(tokens)
    targets = []
    for number, row in enumerate(rows):
        start = 0
        for sequence in row:
            end = start + len(sequence)
            tokens[number, start:end] = sequence
            position_ids[number, start:end] = torch.arange(len(sequence))
            targets.append((number, slice(start + 1, end)))
            start = end
    batch = {
        columns.TOKENS: tokens,
        columns.POSITION_IDS: position_ids,
        columns.LOSS_MASK: position_ids > 0,
    }
    if routed_experts is not None:
        batch[columns.ROUTED_EXPERTS] = routed_experts
    logp = policy(batch).logp
    return [logp[place] for place in targets]


def _check_replay(policy: CausalLMPolicy, tokens: Tensor) -> None:
    """Replaying the experts that tokens go to anyhow changes nothing.

    Raises:
        ValueError: If it does.
    """
    if not policy.replays_routers:
        return
    with recorded_experts(policy.causal_lm) as chosen:
        (alone,) = _logp_of_policy(policy, [[tokens]])
    top_k = max(experts.shape[-1] for experts in chosen.values())
    routed = tokens.new_full((1, len(tokens), 1 + max(chosen), top_k), -1)
    for layer, experts in chosen.items():
        routed[0, :, layer] = experts
    (replayed,) = _logp_of_policy(policy, [[tokens]], routed.short())
    error = float((replayed - alone).abs().max())
    if not error <= _LEAK.float32:
        raise ValueError(
            f"router_replay: {type(policy.causal_lm).__name__} weighs its experts in "
            f"another way than is known (off by {error:.2g} nats); set it to none"
        )


def _fault(
    policy: CausalLMPolicy, sequences: list[Tensor], expected: list[Tensor]
) -> str:
    """What is wrong with the policy under its present layout; empty if nothing."""
    first, second, third, continued = sequences
    try:
        alone = _logp_of_policy(policy, [[third]])
        packed = _logp_of_policy(policy, [[first, second, third], [second]])
        others = _logp_of_policy(policy, [[first.flip(0), second, third], [second]])
        shared = _logp_of_policy(policy, [[third, first], [continued]])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        policy.forget_cut_pass()
        return shorten(str(error), 500)
    exact = _is_float32(policy)
    for what, logp, right, limit in (
        ("of one sequence alone", alone, expected[2:3], _ALONE),
        ("of packed sequences", packed, [*expected[:3], expected[1]], _PACKED),
        ("of a shared prefix", shared, [expected[i] for i in (2, 0, 3)], _PACKED),
        ("within a row", packed[1:], others[1:], _LEAK),
    ):
        if limit is _LEAK and policy.layout is Layout.SEQUENCE_PER_ROW:
            continue
        error = (torch.cat(logp) - torch.cat(right)).abs()
        size = float(error.max() if exact else error.mean())
        if not size <= (limit.float32 if exact else limit.narrower):
            return f"log-probabilities {what} are off by {size:.2g} nats"
    return ""
