"""Log-probabilities of given tokens without a [tokens x vocabulary] matrix.

The projection onto the vocabulary, its softmax and their gradients are formed for
some tokens at a time; the backward pass recomputes such a chunk instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rllib_llm_async.core.head_memory import peak_bytes_per_token

#: Default of what the logits of one chunk and all that is made of them may take.
LOGITS_MEMORY_BYTES = 1_000_000_000


def logit_chunk_tokens(
    memory_bytes: int, head: Callable[[Tensor], Tensor], hidden: Tensor
) -> int:
    """Tokens whose logits may exist at the same time; at least 1.

    Args:
        memory_bytes: Bytes for all that grows with these tokens, at the peak.
        head: As of `head_logprobs`; it is run on a few tokens, there and back.
        hidden: Of the dtype and on the device of the real ones, ``[any, hidden]``.
    """

    def of_one_chunk(states: Tensor) -> Tensor:
        targets = torch.zeros(len(states), dtype=torch.int64, device=states.device)
        return head_logprobs(
            states, head, targets, chunk_tokens=len(states), with_entropy=True
        )[0]

    return max(1, memory_bytes // peak_bytes_per_token(of_one_chunk, hidden))


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each target token, with a head that is a matrix alone.

    Args:
        hidden: Last hidden states, ``[tokens, hidden]`` or ``[batch, time, hidden]``.
        lm_head_weight: ``[vocabulary, hidden]``.
        targets: int64 ``[tokens]`` or ``[batch, time]``.
        temperature: Logits are divided by it.
        chunk_tokens: Tokens whose logits exist at the same time; None takes as many as
            fit `LOGITS_MEMORY_BYTES`.
        with_entropy: Also return the entropy of each distribution, without gradient.

    Returns:
        float32 of the targets' shape (float64 of float64); with ``with_entropy`` a pair
        of them.

    Raises:
        ValueError: If shapes do not fit, or a setting is not positive.
    """
    return head_logprobs(
        hidden,
        lambda chunk: chunk @ lm_head_weight.to(chunk.dtype).T,
        targets,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
        with_entropy=with_entropy,
    )


def head_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `token_logprobs`, with any head.

    Args:
        hidden: Last hidden states, ``[tokens, hidden]`` or ``[batch, time, hidden]``.
        head: Maps ``[n, hidden]`` to logits ``[n, vocabulary]``. The backward pass
            calls it again, so it must not depend on what may have changed by then.
        targets: int64 ``[tokens]`` or ``[batch, time]``.
        temperature: Logits are divided by it.
        chunk_tokens: Tokens whose logits exist at the same time; None takes as many as
            fit `LOGITS_MEMORY_BYTES`.
        with_entropy: Also return the entropy of each distribution, without gradient.

    Returns:
        float32 of the targets' shape (float64 of float64); with ``with_entropy`` a pair
        of them.

    Raises:
        ValueError: If shapes do not fit, or a setting is not positive.
    """
    shape = targets.shape
    if hidden.dim() < 2 or shape != hidden.shape[:-1]:
        raise ValueError(
            "need hidden [tokens, hidden] and targets [tokens], or [batch, time, "
            f"hidden] and [batch, time], got {tuple(hidden.shape)} and {tuple(shape)}"
        )
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if chunk_tokens is None:
        chunk_tokens = logit_chunk_tokens(LOGITS_MEMORY_BYTES, head, hidden)
    if not temperature > 0 or chunk_tokens <= 0:
        raise ValueError(f"need positive {temperature=} and {chunk_tokens=}")

    def chunk_logprobs(chunk: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return _TargetLogprobs.apply(head(chunk), target, temperature, with_entropy)

    logps, entropies = zip(
        *(
            checkpoint(
                chunk_logprobs,
                chunk,
                target,
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for chunk, target in zip(
                hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True
            )
        ),
        strict=True,
    )
    logp = torch.cat(logps).view(shape)
    return (logp, torch.cat(entropies).view(shape)) if with_entropy else logp


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What logits of a dtype are normalised in."""
    return torch.promote_types(dtype, torch.float32)


class _TargetLogprobs(torch.autograd.Function):
    """Log-softmax at one token of each row, in one buffer of the logits' size.

    With s = (logits - max) / T and Z = sum exp s, log p = s - log Z, the entropy is
    log Z - sum s exp s / Z, and d log p(target) = (1[target] - exp s / Z) / T.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        buffer, highest = _shifted(logits, temperature)
        of_target = buffer.gather(-1, targets[:, None]).squeeze(-1)
        total = buffer.exp_().sum(-1)
        log_total = total.log()
        entropy = of_target.new_zeros(0)
        if with_entropy:
            # -s exp s, and 0 where a head rules a token out, not NaN.
            terms = torch.special.entr(buffer, out=buffer).sum(-1)
            entropy = log_total + terms / total
        ctx.save_for_backward(logits, targets, highest, total)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return of_target - log_total, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, highest, total = ctx.saved_tensors
        grad = grad[:, None] / ctx.temperature
        buffer, _ = _shifted(logits, ctx.temperature, highest)
        buffer = buffer.exp_().mul_(-grad / total[:, None])
        buffer.scatter_add_(-1, targets[:, None], grad)
        return buffer.to(logits.dtype), None, None, None


def _shifted(
    logits: Tensor, temperature: float, highest: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(logits - highest) / temperature in a buffer of its own, and ``highest``."""
    if highest is None:
        highest = logits.amax(-1, keepdim=True)
    buffer = logits.to(_wide(logits.dtype), copy=True)
    return buffer.sub_(highest).div_(temperature), highest
