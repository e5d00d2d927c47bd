"""A policy's live weights in modules of their own, for another thread."""

from __future__ import annotations

import copy

from torch import nn

from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy


class PolicyView:
    """The same memory seen through other modules.

    A pass puts modules into a mode, or other weights into them; who does something
    else with the policy at the same time does it with these.

    Args:
        policy: Whose weights, whole.
    """

    def __init__(self, policy: CausalLMPolicy) -> None:
        self._live = policy
        shared: dict[int, object] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False)
            for p in policy.parameters()
        }
        shared |= {id(buffer): buffer for buffer in policy.buffers()}
        #: Of the modules.
        self.policy = copy.deepcopy(policy, shared)

    def refresh(self) -> None:
        """Follows parameters whose memory is elsewhere by now."""
        pairs = zip(self.policy.parameters(), self._live.parameters(), strict=True)
        for seen, live in pairs:
            seen.data = live.data
