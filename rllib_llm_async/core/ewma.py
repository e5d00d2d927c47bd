"""Exponentially weighted moving average of weights, one update per policy version.

    W_t = beta * W_{t-1} + 1,   mean_t = mean_{t-1} + (theta_t - mean_{t-1}) / W_t

Debiased by the running weight as in PPO-EWMA (arXiv 2110.00641). Its centre of mass
lies beta / (1 - beta) versions back; beta = 0 is the newest version, beta -> 1 the
plain mean of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: ``{name: tensor}``, or the pairs that `nn.Module.named_parameters` yields.
NamedTensors = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


class EWMAWeights:
    """Averages named tensors in place, in float32 (or wider).

    Args:
        named_parameters: The first version; copied. Here and below a mapping, or what
            `nn.Module.named_parameters` returns.
        decay: beta in [0, 1); may be set anew between updates.

    Attributes:
        parameters: ``{name: tensor}``, the average.
        total_weight: W.
        decay: beta.
    """

    def __init__(self, named_parameters: NamedTensors, decay: float) -> None:
        self.decay = decay
        self.total_weight = 1.0
        self.parameters = {
            name: _accumulator(tensor)
            for name, tensor in dict(named_parameters).items()
        }

    @torch.no_grad()
    def update(self, named_parameters: NamedTensors) -> None:
        """Takes in the next version, in one pass over the weights.

        Raises:
            ValueError: If the decay is out of range, or names or shapes differ from
                the first version's.
        """
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")
        self.total_weight = self.decay * self.total_weight + 1.0
        torch._foreach_lerp_(
            list(self.parameters.values()),
            self._ordered(named_parameters),
            1.0 / self.total_weight,
        )

    @torch.no_grad()
    def reset(self, named_parameters: NamedTensors) -> None:
        """Forgets the past: mean <- theta, W <- 1."""
        self.total_weight = 1.0
        torch._foreach_copy_(
            list(self.parameters.values()), self._ordered(named_parameters)
        )

    def forward_under(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Calls ``module`` with the averaged weights, in the dtypes of its own."""
        averages = {
            name: mean.to(module.get_parameter(name).dtype)
            for name, mean in self.parameters.items()
        }
        return torch.func.functional_call(module, averages, args, kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Decay, weight and average, for `load_state_dict`: a copy in host memory."""
        return {
            "decay": self.decay,
            "total_weight": self.total_weight,
            "parameters": {
                name: mean.to("cpu", copy=True)
                for name, mean in self.parameters.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.decay = state["decay"]
        self.reset(state["parameters"])
        self.total_weight = state["total_weight"]

    def _ordered(self, named_parameters: NamedTensors) -> list[Tensor]:
        named_parameters = dict(named_parameters)
        if named_parameters.keys() != self.parameters.keys():
            odd = sorted(named_parameters.keys() ^ self.parameters.keys())
            raise ValueError(f"parameter names differ from the first version's: {odd}")
        for name, mean in self.parameters.items():
            if named_parameters[name].shape != mean.shape:  # would be broadcast
                raise ValueError(
                    f"shape of {name!r} differs from the first version's: "
                    f"{tuple(named_parameters[name].shape)}, not {tuple(mean.shape)}"
                )
        return [
            named_parameters[name].detach().to(mean.device, mean.dtype)
            for name, mean in self.parameters.items()
        ]


def _accumulator(tensor: Tensor) -> Tensor:
    # bf16 would swallow the small steps of an average.
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.detach().to(dtype, copy=True)
