"""The domain `banking_knowledge`: what the agent needs to know, it has to search for.

The package reads and indexes all documents for every environment, which takes 0.3 s.
Here a process does so once, and an episode gets a copy of all else: the database, which
agent and user share, and which tools have been discovered so far.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from copy import deepcopy
from functools import cached_property, partial
from typing import Any

from tau2.data_model.tasks import Task
from tau2.domains.banking_knowledge.environment import get_knowledge_base
from tau2.domains.banking_knowledge.retrieval import (
    RETRIEVAL_VARIANTS,
    RetrievalVariant,
    build_policy,
    resolve_variant,
)
from tau2.environment.environment import Environment
from tau2.environment.toolkit import ToolKitBase
from tau2.knowledge.pipeline import RetrievalPipeline
from tau2.knowledge.retrievers.grep_retriever import GrepRetriever
from tau2.runner.build import _derive_read_log_allowlist

from rllib_llm_async.envs.tau2.domain import Domain, guard
from rllib_llm_async.envs.tau2.grep import count_matches
from rllib_llm_async.envs.tool_calls import is_well_formed


def check_variant(name: Any) -> None:
    """Whether it is one of the package's retrieval variants that can be played here.

    Raises:
        ValueError: If not.
    """
    lacks = {key: _needs(variant) for key, variant in RETRIEVAL_VARIANTS.items()}
    valid = [key for key, needed in lacks.items() if needed is None]
    if name not in valid:
        known = isinstance(name, str) and name in lacks
        reason = f"needs {lacks[name]}" if known else "is unknown"
        raise ValueError(
            f"env_config.retrieval_variant: {name!r} {reason}; valid: "
            f"{', '.join(valid)}"
        )


def _needs(variant: RetrievalVariant) -> str | None:
    """What there is not; None if it runs within this process."""
    searches = (variant.kb_search, variant.kb_search_bm25, variant.kb_search_dense)
    if any(search and search.type == "embedding" for search in searches):
        return "an embedding service, which is not supported"
    if any(search and search.reranker for search in searches):
        return "a reranking service, which is not supported"
    if variant.shell is not None:
        return "a shell for the agent, which is not supported"
    return None


class KnowledgeDomain(Domain):
    """`Domain` with documents that all episodes of the process search.

    Args:
        name: As registered with the package.
        solo: The package refuses it.
        variant: One that `check_variant` accepts.
    """

    slow_tools = frozenset({"KB_search", "grep"})

    def __init__(self, name: str, solo: bool, variant: str) -> None:
        #: How the agent comes by what the documents say.
        self.variant = resolve_variant(variant)
        self._documents = get_knowledge_base()
        super().__init__(name, solo, retrieval_variant=variant)
        for search in self._searches():
            search.retrievers = [
                BoundedGrep(top_k=retriever.top_k)
                if isinstance(retriever, GrepRetriever)
                else retriever
                for retriever in search.retrievers
            ]

    def make_environment(self, task: Task, *, solo: bool) -> Environment:
        pristine = self._pristine
        # Not to be copied; the database neither, as unpickling is three times as fast.
        ready: dict[int, Any] = {id(search): search for search in self._searches()}
        ready[id(pristine.tools.db)] = pickle.loads(self._pickled_db)
        environment = deepcopy(pristine, ready)
        environment.policy = build_policy(self.variant, self._documents, task)
        tools = environment.tools
        tools.set_read_log_allowlist(_derive_read_log_allowlist(task))
        tools.update_db = partial(_update_db, tools)
        guard(tools)
        for toolkit in (tools, environment.user_tools):
            toolkit.use_tool = partial(_use_tool, toolkit.use_tool)
        return environment

    @cached_property
    def _pickled_db(self) -> bytes:
        return pickle.dumps(self._pristine.tools.db)

    def _searches(self) -> list[RetrievalPipeline]:
        """Documents and index: nothing writes to them, so that all may use them."""
        members = vars(self._pristine.tools).values()
        return [member for member in members if isinstance(member, RetrievalPipeline)]


class BoundedGrep(GrepRetriever):
    """The package's, for any pattern."""

    def retrieve(
        self, input_data: dict[str, Any], state: dict[str, Any]
    ) -> list[tuple[str, float]]:
        pattern = input_data[self.query_key]
        if not pattern.strip():
            return []
        counts = count_matches(pattern, state[self.content_state_key])
        ranked = sorted(counts.items(), key=lambda item: item[1], reverse=True)
        return [(document, float(count)) for document, count in ranked[: self.top_k]]


def _update_db(tools: ToolKitBase, update_data: dict[str, Any] | None = None) -> None:
    """Merges in what a task begins with; to rebuild all tables takes up to 50 ms."""
    for table, update in (update_data or {}).items():
        _merge(vars(getattr(tools.db, table)), update)


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value)
        else:
            old[key] = deepcopy(value)


def _use_tool(original: Callable[..., Any], **call: Any) -> Any:
    """Refuses what is well-formed itself, but not the JSON in its ``arguments``."""
    written = call.get("arguments")
    if isinstance(written, str):
        try:
            is_safe = is_well_formed(json.loads(written))
        except json.JSONDecodeError:
            # Harmless: the tool says so itself.
            is_safe = True
        if not is_safe:
            raise ValueError("arguments: nested too deep, or not encodable")
    return original(**call)
