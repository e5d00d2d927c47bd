"""Proxy: a mixture of the behaviour and the current policy."""

from __future__ import annotations

from rllib_llm_async.old_logprobs.base import register_source
from rllib_llm_async.old_logprobs.interpolated import InterpolatedSource


@register_source
class LinearProx(InterpolatedSource):
    """pi_old := alpha mu_old + (1 - alpha) pi_theta."""

    name = "linear_prox"
    space = "probability"
