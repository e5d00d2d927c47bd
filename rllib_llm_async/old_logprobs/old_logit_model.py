"""Exact: scored by dedicated actors while the learners work on other batches."""

from __future__ import annotations

import torch

from rllib_llm_async.batch import columns
from rllib_llm_async.old_logprobs.base import OldLogprobSource, register_source
from rllib_llm_async.old_logprobs.snapshot_old import SnapshotOld


@register_source
class OldLogitModel(OldLogprobSource):
    """log pi_old := what an `OldLogitActor` attached to the episodes."""

    name = "old_logit_model"
    is_exact = True
    scores_elsewhere = True
    #: Its actors keep their versions as `SnapshotOld` does.
    reads = frozenset({"old_logit_model"}) | SnapshotOld.reads

    def old_logp(self, batch, forward, version):
        """NaN where episodes were not scored: they finished under another source."""
        scored = batch.get(columns.SCORED_OLD_LOGP)
        if scored is None:
            return torch.full_like(batch[columns.BEHAVIOR_LOGP], torch.nan)
        return scored
