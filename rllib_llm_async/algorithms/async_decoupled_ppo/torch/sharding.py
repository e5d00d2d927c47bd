"""Weights sharded over the learners: each holds a share of every parameter (FSDP2).

While a decoder layer computes, its parameters are gathered from all learners; its
gradients are summed where their share lies. What else is as large as the weights
(Adam's moments, EWMA, snapshots, the reference) is made of the shares, as plain
tensors: sources of log pi_old and the optimizer do not know that they see a part.

All learners make their passes together, see `CausalLMPolicy.in_step`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from rllib_llm_async.algorithms.async_decoupled_ppo.torch.policy_weights import (
    Gradients,
    PolicyWeights,
)
from rllib_llm_async.core.collectives import num_learners, sum_over_learners
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy
from rllib_llm_async.models.layered_loading import is_empty, read_layers
from rllib_llm_async.models.sequence_layout import Layout


def shard_policy(policy: CausalLMPolicy, device: torch.device, model: str) -> None:
    """Leaves this learner its share of a policy, on ``device``, layer by layer.

    Gradients of every micro-batch are summed over the learners at once: to wait for
    the last one would keep whole gradients, as large as the whole weights.

    Args:
        policy: With the same weights on all learners, in host memory, or without any:
            they are read then, and host memory holds one layer (or all that lies
            outside of layers) at a time.
        device: Where the shares are to lie.
        model: Directory or hub name of the policy's model.

    Raises:
        ValueError: If the model cannot be read or sharded.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    name = type(policy.causal_lm).__name__
    layers = [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"learner_sharding: {name} has no layers that could be gathered one by "
            "one; set it to none"
        )
    was_empty = is_empty(policy)
    if not was_empty:
        _check_layout(policy)
    mesh = init_device_mesh(device.type, (num_learners(),))
    waiting = layers[::-1]  # those within others first
    for _ in read_layers(policy.causal_lm, model) if was_empty else [None]:
        for layer in waiting:
            if not is_empty(layer):
                fully_shard(layer, mesh=mesh)
        waiting = [layer for layer in waiting if is_empty(layer)]
    # The root as well is given back after each pass: between passes all that the
    # modules hold are shares.
    fully_shard(policy, mesh=mesh, reshard_after_forward=True)
    for method in ("values", "model_logits"):
        register_fsdp_forward_method(policy, method)
    if was_empty:
        policy.check()
        _check_layout(policy)


def _check_layout(policy: CausalLMPolicy) -> None:
    if policy.layout is Layout.SEQUENCE_PER_ROW:
        name = type(policy.causal_lm).__name__
        raise ValueError(
            f"learner_sharding: {name} needs a row for each sequence, in as many "
            "passes as their lengths ask for, but learners that share weights make "
            "the same passes; set it to none"
        )


class ShardedPolicyWeights(PolicyWeights):
    """One learner's share of the weights of a policy after `shard_policy`.

    The share of a parameter is a contiguous part along its first dimension, which may
    be empty.
    """

    is_sharded = True

    def __init__(self, policy: CausalLMPolicy) -> None:
        super().__init__(policy)
        self.host_mesh = init_device_mesh("cpu", (num_learners(),))
        #: By name, what the modules hold between passes.
        self._sharded: dict[str, DTensor] = dict(policy.named_parameters())
        #: The same memory as plain parameters.
        self._shares = {
            name: nn.Parameter(sharded.detach().to_local(), sharded.requires_grad)
            for name, sharded in self._sharded.items()
        }
        self._trainable = {
            name: self._shares[name] for name in policy.trainable_parameters()
        }

    def held(self) -> Mapping[str, DTensor]:
        return self._sharded

    def optimized(self) -> list[nn.Parameter]:
        return [share for share in self._shares.values() if share.requires_grad]

    def trainable(self) -> Mapping[str, Tensor]:
        return self._trainable

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """All learners have to iterate together; one tensor is gathered at a time."""
        for name in self._trainable:
            yield name, self._sharded[name].detach().full_tensor()

    def score(
        self,
        batch: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor] | None,
        max_tokens: int,
    ) -> Tensor:
        with self._under(parameters or {}):
            return self.policy.score(batch, None, max_tokens)

    @contextlib.contextmanager
    @torch.no_grad()
    def _under(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts other values into the shares, and the own ones back afterwards.

        `torch.func.functional_call` cannot: what it puts in place is not gathered.
        """
        own = {name: self._shares[name].clone() for name in parameters}
        try:
            for name, tensor in parameters.items():
                self._shares[name].copy_(tensor)
            yield
        except BaseException:
            self.policy.forget_cut_pass()
            raise
        finally:
            for name, tensor in own.items():
                self._shares[name].copy_(tensor)

    def forget_gradients(self) -> None:
        for name, sharded in self._sharded.items():
            sharded.grad = self._shares[name].grad = None

    def gradients(self) -> Gradients:
        return {
            self._shares[name]: sharded.grad.to_local()
            for name, sharded in self._sharded.items()
            if sharded.grad is not None
        }

    def clip(
        self, gradients: Gradients, *, grad_clip: float, grad_clip_by: str
    ) -> Tensor | None:
        if grad_clip_by == "value":
            return super().clip(
                gradients, grad_clip=grad_clip, grad_clip_by=grad_clip_by
            )
        norms = _norms(list(gradients.values()))
        if grad_clip_by == "global_norm":
            norms = norms.norm().expand(len(gradients))
        factors = (grad_clip / (norms + 1e-6)).clamp(max=1.0)
        for gradient, factor in zip(gradients.values(), factors, strict=True):
            gradient.mul_(factor.to(gradient.dtype))
        return norms[0].float() if grad_clip_by == "global_norm" else None

    def norm(self, gradients: list[Tensor]) -> Tensor:
        return _norms(gradients).norm().float()


def _norms(gradients: list[Tensor]) -> Tensor:
    """float64 ``[gradients]``: the norm of each whole gradient, of which these are
    this learner's shares."""
    squares = [g.detach().double().square().sum() for g in gradients]
    return sum_over_learners(torch.stack(squares)).sqrt()
