"""Proxy: PPO-EWMA with the decay chosen from the observed staleness, and reset.

With S the width of the staleness window in versions, beta = S / (S + 2) puts the
average's centre of mass, beta / (1 - beta) = S / 2 versions back, in the middle of the
window. When the Train-Infer mask keeps too few tokens the average has drifted from the
policies that sampled them: it restarts from the next version (arXiv 2605.12070).
"""

from __future__ import annotations

from rllib_llm_async.old_logprobs.base import register_source
from rllib_llm_async.old_logprobs.ewma_prox import EWMAProx


@register_source
class PPOEWMAAsyncSource(EWMAProx):
    """`EWMAProx` with staleness-aware decay and automatic reset."""

    name = "ppo_ewma_async"

    def __init__(self, settings):
        super().__init__(settings)
        self._width = 0.0
        self._reset_due = False
        self._num_resets = 0

    @property
    def _decay(self) -> float:
        if not isinstance(self.settings.ewma_decay, str):
            return self.settings.ewma_decay
        return self._width / (self._width + 2.0)

    def observe(self, *, mask_share, staleness_width):
        self._width = staleness_width
        self._reset_due |= mask_share < self.settings.ewma_reset_threshold

    def on_publish(self, version, named_parameters):
        if not self._reset_due:
            super().on_publish(version, named_parameters)
            return
        self.ewma.decay = self._decay
        self.ewma.reset(named_parameters)
        self._reset_due = False
        self._num_resets += 1

    def metrics(self):
        return {**super().metrics(), "ewma_num_resets": self._num_resets}

    def get_state(self):
        return {
            **super().get_state(),
            "width": self._width,
            "reset_due": self._reset_due,
            "num_resets": self._num_resets,
        }

    def set_state(self, state):
        super().set_state(state)
        self._width = state["width"]
        self._reset_due = state["reset_due"]
        self._num_resets = state["num_resets"]
