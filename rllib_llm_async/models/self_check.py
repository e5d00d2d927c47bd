"""Whether a policy is its model: tried on a few short sequences when it is built.

- Log-probabilities, packed and alone, against ``lm(...).logits``; where packed
  sequences see each other, the policy gives each a row of its own.
- What is published of each adapted module against what that module computes, and tied
  weights against each other. A fresh adapter does nothing, so all that trains is
  disturbed meanwhile, and restored bit by bit.

A few passes over some 70 tokens; one adapted module at a time is held twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rllib_llm_async import columns
from rllib_llm_async.models.lora_settings import one_line
from rllib_llm_async.models.published_weights import (
    acting,
    folded,
    is_adapter,
    outermost,
    published,
)

if TYPE_CHECKING:
    from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

#: The middle one lies behind one sequence and before another in the packed row.
_LENGTHS = (24, 9, 40)
#: Of log-probabilities, in nats: the largest error in float32, the mean below it.
#: Faults are tenths of nats and more; packing changes the order of float32 sums.
_MAX_ERROR = 5e-4
_LOW_PRECISION_MEAN_ERROR = 0.25
#: Of what other sequences of a row change, where there is rounding to 8 bits.
_LOW_PRECISION_MEAN_LEAK = 0.02
#: Of a module's output, as a share of its largest element.
_MODULE_ERROR = {True: 1e-4, False: 0.03}
_NOISE = 0.05


@torch.no_grad()
def check_policy(policy: CausalLMPolicy) -> None:
    """Tries a policy; lays out its sequences one per row where that is needed.

    Raises:
        ValueError: In one line, if the policy or what it publishes is not its model.
    """
    _check_adapters_are_lora(policy.lm)
    name = type(policy.causal_lm).__name__
    with _disturbed(policy):
        sequences = _sequences(policy)
        try:
            with _checked_adapters(policy):
                expected = [_logp_of_model(policy, tokens) for tokens in sequences]
        except (TypeError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise ValueError(f"model: {name} cannot run: {one_line(error)}") from error
        _check_tied_weights(policy)
        fault = _fault(policy, sequences, expected)
        if fault and not policy.one_sequence_per_row:
            policy.one_sequence_per_row = True
            fault = _fault(policy, sequences, expected)
        if fault:
            raise ValueError(
                f"model: {name} is not computed right: {fault}; choose another model"
            )


def _is_float32(policy: CausalLMPolicy) -> bool:
    dtypes = {p.dtype for p in policy.lm.parameters() if p.is_floating_point()}
    low = {torch.bfloat16, torch.float16, policy.compute_dtype} - {None, torch.float32}
    return policy.compute_dtype not in low and not dtypes & low


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
    return [
        usual[torch.randint(len(usual), (length,), generator=generator)].to(device)
        for length in _LENGTHS
    ]


def _logp_of_model(policy: CausalLMPolicy, tokens: Tensor) -> Tensor:
    """log pi float32 ``[tokens - 1]`` of one sequence from ``lm(...).logits``."""
    policy.lm.eval()
    with policy.numerics():
        logits = policy.lm(input_ids=tokens[None], use_cache=False).logits[0, :-1]
    logp = (logits.float() / policy.temperature).log_softmax(-1)
    return logp.gather(-1, tokens[1:, None]).squeeze(-1)


def _logp_of_policy(policy: CausalLMPolicy, rows: list[list[Tensor]]) -> list[Tensor]:
    """log pi ``[tokens - 1]`` of each sequence, packed into rows as given."""
    length = max(sum(map(len, row)) for row in rows)
    tokens = rows[0][0].new_zeros(len(rows), length)
    position_ids, mask = torch.zeros_like(tokens), torch.zeros_like(tokens).bool()
    places = []
    for number, row in enumerate(rows):
        start = 0
        for sequence in row:
            place = number, slice(start, start + len(sequence))
            tokens[place] = sequence
            position_ids[place] = torch.arange(len(sequence), device=tokens.device)
            places.append((number, slice(start + 1, place[1].stop)))
            start = place[1].stop
    mask = position_ids > 0
    logp = policy(
        {
            columns.TOKENS: tokens,
            columns.POSITION_IDS: position_ids,
            columns.LOSS_MASK: mask,
        }
    ).logp
    return [logp[place] for place in places]


def _fault(
    policy: CausalLMPolicy, sequences: list[Tensor], expected: list[Tensor]
) -> str:
    """What is wrong with the policy under its present layout; empty if nothing."""
    first, second, third = sequences
    try:
        alone = _logp_of_policy(policy, [[third]])
        packed = _logp_of_policy(policy, [[first, second, third], [second]])
        others = _logp_of_policy(policy, [[first.flip(0), second, third], [second]])
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        return one_line(error)
    exact = _is_float32(policy)
    for what, logp, right in (
        ("one sequence alone", alone, expected[2:]),
        ("packed sequences", packed, [*expected, expected[1]]),
    ):
        error = (torch.cat(logp) - torch.cat(right)).abs()
        size = error.max() if exact else error.mean()
        if not size <= (_MAX_ERROR if exact else _LOW_PRECISION_MEAN_ERROR):
            return f"log-probabilities of {what} are off by {float(size):.2g} nats"
    leak = (torch.cat(packed[1:]) - torch.cat(others[1:])).abs()
    size = leak.max() if exact else leak.mean()
    if not size <= (_MAX_ERROR if exact else _LOW_PRECISION_MEAN_LEAK):
        return f"another sequence of the row changes them by {float(size):.2g} nats"
    return ""


# --- Adapters -------------------------------------------------------------------------


def _check_adapters_are_lora(lm: Any) -> None:
    kinds = [config.peft_type for config in getattr(lm, "peft_config", {}).values()]
    if kinds not in ([], ["LORA"]):
        raise ValueError(
            f"lora: the model has adapters of kind {', '.join(map(str, kinds))}; one LoRA "
            "adapter is what can be trained"
        )
    storages: dict[int, str] = {}
    for name, parameter in lm.named_parameters():
        if kinds and parameter.requires_grad and parameter.numel():
            other = storages.setdefault(parameter.data_ptr(), name)
            if other != name:
                raise ValueError(
                    f"lora: {name} and {other} share memory and would be trained twice; "
                    "leave the tied embeddings out of target_modules"
                )


@contextlib.contextmanager
def _disturbed(policy: CausalLMPolicy) -> Iterator[None]:
    """With adapters: all that trains is shifted by noise, and restored bit by bit."""
    trained = policy.trainable_parameters() if hasattr(policy.lm, "peft_config") else {}
    originals = {name: p.data for name, p in trained.items()}
    generator = torch.Generator().manual_seed(0)
    try:
        for p in trained.values():
            scale = max(_NOISE, 0.1 * float(p.data.float().square().mean().sqrt()))
            noise = scale * torch.randn(p.shape, generator=generator)
            p.data = p.data + noise.to(p)
        yield
    finally:
        for name, p in trained.items():
            p.data = originals[name]


@contextlib.contextmanager
def _checked_adapters(policy: CausalLMPolicy) -> Iterator[None]:
    """Compares each adapted module that runs with what is published of it."""
    adapters = {n: m for n, m in outermost(policy.causal_lm) if is_adapter(m)}
    limit = _MODULE_ERROR[_is_float32(policy)]
    silent = set(adapters)

    def check(name: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if name not in silent:
            return
        silent.discard(name)
        try:
            weights = folded(module)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"lora: {name}: {one_line(error)}") from error
        served = torch.func.functional_call(acting(module), weights, args, kwargs)
        error = (out - served).abs().max() / served.abs().max()
        if not error <= limit:
            raise ValueError(
                f"lora: what an engine would be given of {name} computes something else "
                f"(off by {float(error):.1%}); choose other target_modules or arguments"
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
        raise ValueError(
            f"lora: the model does not run {unused[0]} as a module, so that its adapter "
            "has no effect; leave it out of target_modules"
        )


def _check_tied_weights(policy: CausalLMPolicy) -> None:
    """An engine holds tied tensors once, so their adapters must do the same."""
    if not hasattr(policy.lm, "peft_config"):
        return
    by_origin: dict[int, tuple[str, Tensor]] = {}
    for name, tensor, origin in published(policy.causal_lm):
        other, first = by_origin.setdefault(id(origin), (name, tensor))
        if first is not tensor and not torch.allclose(first, tensor, atol=1e-5):
            raise ValueError(
                f"lora: {other} and {name} are one tensor in the model and in the engine, "
                "and the adapters would make them differ; adapt neither of them, or put "
                "both into modules_to_save with ensure_weight_tying"
            )
