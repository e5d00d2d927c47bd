"""Where log pi_old comes from: one source per file, chosen by ``old_logprob_source``.

A source of one's own is a subclass of `OldLogprobSource` under `register_source`.
"""

from rllib_llm_async.old_logprobs.auto import Auto
from rllib_llm_async.old_logprobs.base import (
    OldLogprobSource,
    SourceSettings,
    find_source,
    make_source,
    register_source,
    source_class,
    source_names,
)
from rllib_llm_async.old_logprobs.comparison import SourceComparison
from rllib_llm_async.old_logprobs.current_recompute import CurrentRecompute
from rllib_llm_async.old_logprobs.ewma_prox import EWMAProx
from rllib_llm_async.old_logprobs.in_use import SourcesInUse
from rllib_llm_async.old_logprobs.interp_prox_loglinear import InterpProxLoglinear
from rllib_llm_async.old_logprobs.interpolated import InterpolatedSource
from rllib_llm_async.old_logprobs.interrupt_sync import InterruptSync
from rllib_llm_async.old_logprobs.linear_prox import LinearProx
from rllib_llm_async.old_logprobs.old_logit_model import OldLogitModel
from rllib_llm_async.old_logprobs.ppo_ewma_async import PPOEWMAAsyncSource
from rllib_llm_async.old_logprobs.rollout import Rollout
from rllib_llm_async.old_logprobs.snapshot_old import SnapshotOld

__all__ = [
    "Auto",
    "CurrentRecompute",
    "EWMAProx",
    "InterpProxLoglinear",
    "InterpolatedSource",
    "InterruptSync",
    "LinearProx",
    "OldLogitModel",
    "OldLogprobSource",
    "PPOEWMAAsyncSource",
    "Rollout",
    "SnapshotOld",
    "SourceComparison",
    "SourceSettings",
    "SourcesInUse",
    "find_source",
    "make_source",
    "register_source",
    "source_class",
    "source_names",
]
