"""From a decoder's hidden states to logits, through the model's own `forward`.

What stands between the two differs from family to family: a bias, scaling, soft caps,
adapters. None of it is written down here: the causal LM's class runs its own `forward`
on a shallow copy of the model whose decoder hands out hidden states that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def decoder_name(causal_lm: Any) -> str:
    """Name of the child that turns tokens into the hidden states of the head.

    Raises:
        ValueError: If the model has no such child.
    """
    children = dict(causal_lm.named_children())
    prefix = getattr(causal_lm, "base_model_prefix", "")
    if prefix in children:
        return prefix
    embeddings = causal_lm.get_input_embeddings()
    for name, child in children.items():
        if child is not embeddings and embeddings in list(child.modules()):
            return name
    raise ValueError(
        f"model: {type(causal_lm).__name__} has no decoder apart from its head; give a "
        "decoder-only causal LM of transformers"
    )


def head_of(causal_lm: nn.Module) -> Callable[[Tensor], Tensor]:
    """The head under the weights that the model has now, also in a later backward pass.

    Returns:
        A function from hidden states ``[tokens, hidden]`` to logits
        ``[tokens, vocabulary]``.
    """
    name = decoder_name(causal_lm)
    given = _GivenHidden(getattr(causal_lm, name), causal_lm.get_decoder())
    head = object.__new__(type(causal_lm))
    head.__dict__.update(causal_lm.__dict__)
    head.__dict__["_modules"] = {**causal_lm._modules, name: given}
    for hooks in _HOOKS:
        head.__dict__[hooks] = {}
    # Under `functional_call` these are the replaced weights; when the backward pass
    # computes a chunk anew, the module itself holds its own again.
    weights = dict(head.named_parameters())

    def logits(hidden: Tensor) -> Tensor:
        given.hidden = hidden[None]
        tokens = torch.zeros(
            1, hidden.shape[0], dtype=torch.int64, device=hidden.device
        )
        output = torch.func.functional_call(
            head, weights, (), {"input_ids": tokens, "use_cache": False}
        )
        return output.logits[0]

    return logits


class _GivenHidden(nn.Module):
    """Stands for a decoder whose pass is over; all else is the decoder's.

    Args:
        decoder: What the head's model calls.
        inner: The decoder proper, if it calls that one instead (``model.decoder``).
    """

    hidden: Tensor

    def __init__(self, decoder: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        # A tuple, so that the decoder's weights are not among the head's.
        self._stands_for = (decoder, inner)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            decoder, inner = self.__dict__["_stands_for"]
            value = getattr(decoder, name)
            return self if value is inner else value

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(self.hidden)


class _Output:
    """The hidden states; whatever else a decoder may return is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]
