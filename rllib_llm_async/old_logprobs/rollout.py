"""No recovery: mu_old stands for pi_old, the single-ratio baseline (r_d = 1)."""

from __future__ import annotations

from rllib_llm_async.batch import columns
from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source
from rllib_llm_async.old_logprobs.interpolated import warnings_of_one_ratio


@register_source
class Rollout(OldLogprobSource):
    """log pi_old := log mu_old."""

    name = "rollout"

    def old_logp(self, batch, forward, version):
        return batch[columns.BEHAVIOR_LOGP]

    @classmethod
    def config_warnings(cls, config):
        yield from warnings_of_one_ratio(cls.name)
