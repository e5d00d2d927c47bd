"""Proxy: PPO-EWMA with the decay chosen from the observed staleness, and reset.

With S the width of the staleness window in versions, beta = S / (S + 2) puts the
average's centre of mass, beta / (1 - beta) = S / 2 versions back, in the middle of the
window. When the Train-Infer mask keeps too few tokens the average has drifted from the
policies that sampled them: it restarts from the next version (arXiv 2605.12070).
"""

from __future__ import annotations

from collections import deque

from rllib_llm_async import result_keys
from rllib_llm_async.old_logprobs.base import register_source
from rllib_llm_async.old_logprobs.ewma_prox import EWMAProx

#: Updates whose widest staleness is the window: one fresh batch among stale ones must
#: not set the decay to 0, which forgets all history.
WINDOW_UPDATES = 8
#: Resets in a row from which the average is never more than the newest version.
RESETS_IN_DISGUISE = 3


@register_source
class PPOEWMAAsyncSource(EWMAProx):
    """`EWMAProx` with staleness-aware decay and automatic reset."""

    name = "ppo_ewma_async"
    reads = frozenset({result_keys.EWMA_DECAY, "ewma_reset_threshold"})

    def __init__(self, settings):
        super().__init__(settings)
        self._widths: deque[float] = deque(maxlen=WINDOW_UPDATES)
        self._reset_due = False
        self._num_resets = 0
        self._resets_in_a_row = 0

    @property
    def _decay(self) -> float:
        if not isinstance(self.settings.ewma_decay, str):
            return self.settings.ewma_decay
        width = max(self._widths, default=0.0)
        return width / (width + 2.0)

    def observe(self, *, mask_share, staleness_width):
        self._widths.append(staleness_width)
        self._reset_due |= mask_share < self.settings.ewma_reset_threshold

    def old_logp(self, batch, forward, version):
        # A reset that is due has met no new version: the update had no signal, which
        # without this would stay so for good where the mask keeps nothing.
        if self._reset_due:
            return forward(batch, None)
        return super().old_logp(batch, forward, version)

    def on_publish(self, version, named_parameters):
        if not self._reset_due:
            self._resets_in_a_row = 0
            super().on_publish(version, named_parameters)
            return
        self.ewma.decay = self._decay
        self.ewma.reset(named_parameters)
        self._reset_due = False
        self._num_resets += 1
        self._resets_in_a_row += 1

    def metrics(self):
        return {
            **super().metrics(),
            result_keys.EWMA_NUM_RESETS: self._num_resets,
            result_keys.EWMA_RESETS_IN_A_ROW: self._resets_in_a_row,
        }

    def get_state(self):
        return {
            **super().get_state(),
            "widths": list(self._widths),
            "reset_due": self._reset_due,
            "num_resets": self._num_resets,
            "resets_in_a_row": self._resets_in_a_row,
        }

    def set_state(self, state):
        super().set_state(state)
        self._widths = deque(state["widths"], maxlen=WINDOW_UPDATES)
        self._reset_due = state["reset_due"]
        self._num_resets = state["num_resets"]
        self._resets_in_a_row = state["resets_in_a_row"]

    @classmethod
    def result_warnings(cls, config, results):
        in_a_row = results.get(result_keys.EWMA_RESETS_IN_A_ROW, 0)
        if in_a_row >= RESETS_IN_DISGUISE:
            yield (
                "the EWMA restarts at every version, which is current_recompute in "
                f"disguise: {in_a_row:.0f} resets in a row, since the mask keeps less "
                f"than ewma_reset_threshold={config.ewma_reset_threshold}; set eps_ti "
                "higher, or choose snapshot_old"
            )
