"""Log-probabilities of given tokens without a [tokens x vocabulary] matrix.

The projection onto the vocabulary, its softmax and their gradients are formed for
``chunk_tokens`` tokens at a time; the backward pass recomputes a chunk instead of
keeping it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def token_logprobs(
    hidden: Tensor,
    lm_head_weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 4096,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each target token, with a head that is a matrix alone.

    Args:
        hidden: Last hidden states, ``[tokens, hidden]``.
        lm_head_weight: ``[vocabulary, hidden]``.
        targets: int64 ``[tokens]``.
        temperature: Logits are divided by it.
        chunk_tokens: Tokens whose logits exist at the same time.
        with_entropy: Also return the entropy of each distribution, without gradient.

    Returns:
        float32 ``[tokens]``; with ``with_entropy`` a pair of them.

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
    chunk_tokens: int = 4096,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """As `token_logprobs`, with any head.

    Args:
        hidden: Last hidden states, ``[tokens, hidden]``.
        head: Maps ``[n, hidden]`` to logits ``[n, vocabulary]``. The backward pass
            calls it again, so it must not depend on what may have changed by then.
        targets: int64 ``[tokens]``.
        temperature: Logits are divided by it.
        chunk_tokens: Tokens whose logits exist at the same time.
        with_entropy: Also return the entropy of each distribution, without gradient.

    Returns:
        float32 ``[tokens]``; with ``with_entropy`` a pair of them.

    Raises:
        ValueError: If shapes do not fit, or a setting is not positive.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            "need hidden [tokens, hidden] and targets [tokens], got "
            f"{tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    if not temperature > 0 or chunk_tokens <= 0:
        raise ValueError(f"need positive {temperature=} and {chunk_tokens=}")

    logps, entropies = [], []
    for chunk, target in zip(
        hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True
    ):
        logp, entropy = checkpoint(
            _chunk_logprobs,
            chunk,
            head,
            target,
            temperature,
            with_entropy,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        logps.append(logp)
        entropies.append(entropy)
    logp = torch.cat(logps)
    return (logp, torch.cat(entropies)) if with_entropy else logp


def _chunk_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature
    normaliser = logits.logsumexp(-1)
    logp = logits.gather(-1, targets[:, None]).squeeze(-1) - normaliser
    if not with_entropy:
        return logp, logp.new_zeros(0)
    with torch.no_grad():
        # A token that the head rules out, at -inf, adds 0 and not NaN.
        entropy = torch.special.entr((logits - normaliser[:, None]).exp_()).sum(-1)
    return logp, entropy
