"""A domain of tau2-bench, with the documents that its agent searches, if any."""

from __future__ import annotations

import gc
from functools import cache

from rllib_llm_async.envs.tau2.domain import Domain


@cache
def load_domain(name: str, solo: bool, retrieval_variant: str | None = None) -> Domain:
    """`Domain`, loaded once in a process; with a variant, one that has documents."""
    if retrieval_variant is None:
        domain = Domain(name, solo)
    else:
        from rllib_llm_async.envs.tau2.knowledge import KnowledgeDomain

        domain = KnowledgeDomain(name, solo, retrieval_variant)
    # Thousands of objects that live as long as the process: not to be visited again.
    gc.collect()
    gc.freeze()
    return domain
