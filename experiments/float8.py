"""Engines with the weights of a float8 rollout, on machines without float8 products.

What is published is rounded as float8 engines round it: each row of a linear layer's
matrix to 4 bits of exponent and 3 of mantissa, scaled so that its largest element is
the largest that there is. Embeddings and norms stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

FLOAT8 = torch.float8_e4m3fn


@contextlib.contextmanager
def float8_weights() -> Iterator[None]:
    """Rounds what learners of this process publish while it is open."""
    published = CausalLMPolicy.inference_weights

    def rounded(policy: CausalLMPolicy) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in published(policy):
            is_linear = tensor.dim() == 2 and "embed" not in name
            yield name, rounded_rows(tensor) if is_linear else tensor

    with mock.patch.object(CausalLMPolicy, "inference_weights", rounded):
        yield


def rounded_rows(matrix: Tensor) -> Tensor:
    """A matrix ``[rows, columns]`` through float8, in its own dtype."""
    largest = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    scale = largest / torch.finfo(FLOAT8).max
    return (matrix / scale).to(FLOAT8).to(matrix.dtype) * scale
