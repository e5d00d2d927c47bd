"""Proxy: log-linear interpolation, as in A-3PO (arXiv 2512.06547)."""

from __future__ import annotations

from rllib_llm_async.old_logprobs.base import register_source
from rllib_llm_async.old_logprobs.interpolated import InterpolatedSource


@register_source
class InterpProxLoglinear(InterpolatedSource):
    """log pi_old := alpha log mu_old + (1 - alpha) log pi_theta."""

    name = "interp_prox_loglinear"
    space = "log"
