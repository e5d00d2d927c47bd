"""Proxy: the trainer's weights when the batch arrives (plain async decoupled PPO)."""

from __future__ import annotations

from rllib_llm_async.old_logprobs.base import (
    OldLogprobSource,
    register_source,
    takes_one_step,
)


@register_source
class CurrentRecompute(OldLogprobSource):
    """log pi_old := log pi under the weights before the first step on the batch."""

    name = "current_recompute"

    def old_logp(self, batch, forward, version):
        return forward(batch, None)

    @classmethod
    def config_warnings(cls, config):
        if takes_one_step(config):
            yield (
                "r_s is 1 for every token and the clip never acts: pi_old is "
                "recomputed under the weights of the only optimizer step; set "
                "minibatch_size to half of a learner's episodes or less, or choose "
                "another old_logprob_source"
            )
