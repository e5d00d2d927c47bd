"""Proxy: the trainer's weights when the batch arrives (plain async decoupled PPO)."""

from __future__ import annotations

from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source


@register_source
class CurrentRecompute(OldLogprobSource):
    """log pi_old := log pi under the weights before the first step on the batch."""

    name = "current_recompute"

    def old_logp(self, batch, forward, version):
        return forward(batch, None)
