"""Starts with the cheap proxy and takes the exact source when measurements say so.

Every few updates both are computed on a sample of the batch's rows. The exact source
takes over if the proxy's Train-Infer mask differs from the exact one on too many
tokens, or if it costs hardly more; the proxy comes back when neither is so any longer.
What is measured are counts of tokens and bytes, added up over all learners: a clock
would tell each of them something else, and they would train on different sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.core.ratios import log_ratio, train_infer_mask
from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source
from rllib_llm_async.old_logprobs.ppo_ewma_async import PPOEWMAAsyncSource
from rllib_llm_async.old_logprobs.snapshot_old import SnapshotOld

#: Updates with stale tokens from one measurement to the next, and the share of rows
#: measured on.
CHECK_EVERY = 8
SAMPLE_SHARE = 1 / 8
#: Share of tokens on which the masks may differ; half of it brings the proxy back.
MAX_MASK_DISAGREEMENT = 0.01
#: Exact tokens computed over the proxy's, and bytes of weights held over the proxy's,
#: at which precision costs nothing worth saving.
FREE_COST_RATIO = 1.1

_NOTHING_COUNTED = dict.fromkeys(
    (
        "stale_tokens",
        "measured_tokens",
        "differing_tokens",
        "abs_error",
        "exact_forward_tokens",
        "proxy_forward_tokens",
        "exact_bytes",
        "proxy_bytes",
    ),
    0.0,
)


@register_source
class Auto(OldLogprobSource):
    """`ppo_ewma_async` or `snapshot_old`, whichever the last measurement favours."""

    name = "auto"
    reads = PPOEWMAAsyncSource.reads | SnapshotOld.reads

    def __init__(self, settings):
        super().__init__(settings)
        self.proxy = PPOEWMAAsyncSource(settings)
        self.exact = SnapshotOld(settings)
        #: In the next update, and in the last one.
        self.uses_exact = self._used_exact = False
        self._reason = "starts with the proxy, nothing measured yet"
        self._num_switches = 0
        self._updates_to_check = 1
        self._counts = dict(_NOTHING_COUNTED)
        self._measured: dict[str, float] = {}

    def on_publish(self, version, named_parameters):
        self.proxy.on_publish(version, named_parameters)
        self.exact.on_publish(version, named_parameters)

    def old_logp(self, batch, forward, version):
        mask = batch[columns.LOSS_MASK]
        self._counts = dict(_NOTHING_COUNTED)
        self._counts["stale_tokens"] = float(
            (mask & (batch[columns.VERSIONS] != version)).sum()
        )
        if self._updates_to_check <= 0:
            self._measure(_sample(batch), forward, version)
        self._used_exact = self.uses_exact
        source = self.exact if self.uses_exact else self.proxy
        return source.old_logp(batch, forward, version)

    def _measure(self, sample: Mapping[str, Tensor], forward, version) -> None:
        proxy = self.proxy.old_logp(sample, forward, version)
        exact = self.exact.old_logp(sample, forward, version)
        mask = sample[columns.LOSS_MASK] & ~exact.isnan()
        kept = [
            train_infer_mask(
                log_ratio(
                    old_logp,
                    sample[columns.BEHAVIOR_LOGP],
                    mask,
                    self.settings.mask_unit_ids(sample),
                ),
                mask,
                self.settings.eps_ti,
            )
            for old_logp in (proxy, exact)
        ]
        self._counts |= {
            "measured_tokens": float(mask.sum()),
            "differing_tokens": float((kept[0] ^ kept[1]).sum()),
            "abs_error": float(log_ratio(proxy, exact, mask).abs().sum()),
            "exact_forward_tokens": float(self.exact.forward_tokens),
            "proxy_forward_tokens": float(self.exact.one_pass_tokens),
            "exact_bytes": float(self.exact.nbytes),
            "proxy_bytes": float(self.proxy.nbytes),
        }

    def counts(self):
        return self._counts

    def agree(self, totals):
        if not totals["stale_tokens"]:
            return  # both sources are the same: nothing to be learned
        if not totals["measured_tokens"]:
            self._updates_to_check -= 1
            return
        self._updates_to_check = CHECK_EVERY
        tokens = totals["measured_tokens"]
        self._measured = {
            result_keys.AUTO_MASK_DISAGREEMENT: totals["differing_tokens"] / tokens,
            result_keys.AUTO_LOG_RATIO_ABS_ERROR_MEAN: totals["abs_error"] / tokens,
            result_keys.AUTO_COST_RATIO: max(
                totals["exact_forward_tokens"] / totals["proxy_forward_tokens"],
                totals["exact_bytes"] / max(totals["proxy_bytes"], 1.0),
            ),
        }
        self._decide(**self._measured)

    def _decide(
        self, auto_mask_disagreement: float, auto_cost_ratio: float, **_: float
    ) -> None:
        differs = f"the proxy's mask differs on {auto_mask_disagreement:.2%} of tokens"
        costs = f"the exact source costs {auto_cost_ratio:.2f} times the proxy"
        limit = MAX_MASK_DISAGREEMENT * (0.5 if self.uses_exact else 1.0)
        before = self.uses_exact
        if auto_mask_disagreement > limit:
            self.uses_exact, self._reason = True, f"exact: {differs}"
        elif auto_cost_ratio <= FREE_COST_RATIO:
            self.uses_exact, self._reason = True, f"exact: {costs}"
        else:
            self.uses_exact, self._reason = False, f"proxy: {differs}, {costs}"
        self._num_switches += before != self.uses_exact

    def observe(self, *, mask_share, staleness_width):
        # The mask share tells of the proxy only where the proxy was in use.
        self.proxy.observe(
            mask_share=1.0 if self._used_exact else mask_share,
            staleness_width=staleness_width,
        )

    def metrics(self):
        return {
            **self.exact.metrics(),
            **self.proxy.metrics(),
            **self._measured,
            result_keys.AUTO_USES_EXACT: float(self._used_exact),
            result_keys.AUTO_NUM_SWITCHES: self._num_switches,
            result_keys.AUTO_REASON: self._reason,
        }

    @property
    def nbytes(self):
        return self.proxy.nbytes + self.exact.nbytes

    def get_state(self):
        return {
            "proxy": self.proxy.get_state(),
            "exact": self.exact.get_state(),
            "uses_exact": self.uses_exact,
            "reason": self._reason,
            "num_switches": self._num_switches,
            "updates_to_check": self._updates_to_check,
            "measured": dict(self._measured),
        }

    def set_state(self, state):
        self.proxy.set_state(state["proxy"])
        self.exact.set_state(state["exact"])
        self.uses_exact = state["uses_exact"]
        self._reason = state["reason"]
        self._num_switches = state["num_switches"]
        self._updates_to_check = state["updates_to_check"]
        self._measured = dict(state["measured"])

    @staticmethod
    def states_of_parts(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Of a state: those of the two sources, by their names."""
        return {
            PPOEWMAAsyncSource.name: state["proxy"],
            SnapshotOld.name: state["exact"],
        }

    def take_over(self, states):
        super().take_over(states)
        if self.name not in states:
            self.proxy.take_over(states)
            self.exact.take_over(states)

    @classmethod
    def config_warnings(cls, config):
        yield from PPOEWMAAsyncSource.config_warnings(config)

    @classmethod
    def was_exact(cls, results):
        return bool(results.get(result_keys.AUTO_USES_EXACT))

    @classmethod
    def result_warnings(cls, config, results):
        if not cls.was_exact(results):
            yield from PPOEWMAAsyncSource.result_warnings(config, results)


def _sample(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Evenly spaced rows: packing sorts them by the length of their sequences."""
    step = max(1, round(1 / SAMPLE_SHARE))
    return {key: column[::step] for key, column in batch.items()}
