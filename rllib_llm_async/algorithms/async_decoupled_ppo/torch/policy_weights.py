"""What a learner does with the weights of its policy, one part of which is sharded.

`PolicyWeights` is for a learner that holds all of them, `ShardedPolicyWeights` (in
`sharding`) for one that holds a share of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ray.rllib.utils.torch_utils import clip_gradients, compute_global_norm
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

#: By parameter, as RLlib hands gradients around.
Gradients = dict[nn.Parameter, Tensor]


class PolicyWeights:
    """The weights of a policy, whole.

    Args:
        policy: Whose weights.
    """

    #: Whether all learners have to publish together, since each holds a share.
    is_sharded = False
    #: The learners that share them, as far as tensors in host memory are concerned.
    host_mesh: DeviceMesh | None = None

    def __init__(self, policy: CausalLMPolicy) -> None:
        self.policy = policy

    def optimized(self) -> list[nn.Parameter]:
        """What optimizer steps change, a value head too; always the same objects."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def trainable(self) -> Mapping[str, Tensor]:
        """What versions consist of, see `CausalLMPolicy.trainable_parameters`."""
        return self.policy.trainable_parameters()

    def held(self) -> Mapping[str, Tensor]:
        """All parameters by name, as the modules hold them between passes."""
        return dict(self.policy.named_parameters())

    def copy(self) -> dict[str, Tensor]:
        """What `trainable` gives, as it is now.

        With LoRA these are the adapter's, which may not start at zero (PiSSA).
        """
        return {n: tensor.detach().clone() for n, tensor in self.trainable().items()}

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yields what `trainable` names, each tensor whole."""
        yield from self.trainable().items()

    def score(
        self,
        batch: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor] | None,
        max_tokens: int,
    ) -> Tensor:
        """See `CausalLMPolicy.score`; ``parameters`` are as `trainable` gives them."""
        return self.policy.score(batch, parameters, max_tokens)

    def forget_gradients(self) -> None:
        """Frees them, after a step."""
        self.policy.zero_grad(set_to_none=True)

    def gradients(self) -> Gradients:
        """Of the backward passes since `forget_gradients`, by `optimized` parameter."""
        return {p: p.grad for p in self.optimized() if p.grad is not None}

    def clip(
        self, gradients: Gradients, *, grad_clip: float, grad_clip_by: str
    ) -> Tensor | None:
        """RLlib's `clip_gradients`: in place, by value or by the norm of a whole
        gradient (of all of them, which is then returned)."""
        return clip_gradients(gradients, grad_clip=grad_clip, grad_clip_by=grad_clip_by)

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients together, a scalar."""
        return compute_global_norm(gradients)
