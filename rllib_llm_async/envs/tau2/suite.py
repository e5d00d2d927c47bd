"""The suite `tau2`: tasks of tau2-bench's domains and who plays the user and judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rllib_llm_async.envs.agent_env import TaskRef
from rllib_llm_async.envs.chat_model import ChatModel, ReportsOnModels
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from rllib_llm_async.envs.domains import chosen_domains
from rllib_llm_async.envs.tau2.package import load_package

if TYPE_CHECKING:
    from tau2.data_model.tasks import Task

    from rllib_llm_async.envs.tau2.domain import Domain
    from rllib_llm_async.envs.tau2.episode import Tau2Env


#: The domain whose agent searches documents.
_KNOWLEDGE = "banking_knowledge"
#: The best of the package's that runs without a service; its own default, `alltools`,
#: needs embeddings and a shell.
_DEFAULT_VARIANT = "bm25_grep"


class Tau2Suite(ReportsOnModels):
    """Tasks of one or several domains; splits are those that the package declares.

    Args:
        domains: As registered with the package, e.g. ``[retail]``.
        user: Settings of the model that plays the user, see `make_chat_model`.
        judge: Settings of the model that grades what can only be read. Needed if a
            task of the domains has such criteria.
        solo: No user: the agent gets a ticket and all tools, in domains that can.
        train_split: The package's split that training draws from.
        max_steps: Messages after which an episode is truncated; the package's own
            number if None.
        retrieval_variant: How the agent of `banking_knowledge` comes by what it has to
            know, one of the package's ways; `bm25_grep` if None.

    Raises:
        ValueError: If the package, its data, or a setting is missing or wrong.
    """

    name = "tau2"

    def __init__(
        self,
        domains: Sequence[str],
        user: Mapping[str, Any] | None = None,
        judge: Mapping[str, Any] | None = None,
        solo: bool = False,
        train_split: str = "train",
        max_steps: int | None = None,
        retrieval_variant: str | None = None,
    ) -> None:
        load_package()
        from tau2.config import DEFAULT_MAX_ERRORS, DEFAULT_MAX_STEPS

        if max_steps is not None and (type(max_steps) is not int or max_steps < 1):
            raise ValueError(
                f"env_config.max_steps: got {max_steps!r}, need 1 or more messages"
            )
        if solo == (user is not None):
            raise ValueError(
                "env_config.user: solo mode has no user"
                if solo
                else "env_config.user: missing; it needs the settings of an endpoint, "
                "e.g. {model: NAME, base_url: URL}, or solo: true"
            )
        self.max_steps = max_steps or DEFAULT_MAX_STEPS
        self.max_errors = DEFAULT_MAX_ERRORS
        self.user: ChatModel | None = None
        self.judge: ChatModel | None = None
        if user is not None:
            self.user = make_chat_model(user, "env_config.user")
        if judge is not None:
            self.judge = make_chat_model(judge, "env_config.judge")
        _check_names(domains)
        if _KNOWLEDGE in domains:
            retrieval_variant = _check_variant(retrieval_variant)
        elif retrieval_variant is not None:
            raise ValueError(
                f"env_config.retrieval_variant: got {retrieval_variant!r}, but only "
                f"domain {_KNOWLEDGE!r} has documents to retrieve; leave the key out"
            )
        self.domains = {
            name: _load(name, solo, retrieval_variant if name == _KNOWLEDGE else None)
            for name in domains
        }
        self._train_split = train_split
        self.tasks("train")
        if self.judge is None:
            self._check_that_no_judge_is_needed()

    def tasks(self, split: str) -> list[TaskRef]:
        """All tasks of a split.

        Raises:
            ValueError: If a domain has no such split.
        """
        if split == "train":
            split = self._train_split
        for domain in self.domains.values():
            if not domain.splits.get(split):
                raise ValueError(
                    f"split: domain {domain.name!r} of tau2 has no tasks in {split!r}, "
                    f"only in {', '.join(s for s, ids in domain.splits.items() if ids)}"
                    " (env_config.train_split says which of them training draws from)"
                )
        return [
            TaskRef(self.name, f"{domain.name}/{task_id}", split)
            for domain in self.domains.values()
            for task_id in domain.splits[split]
        ]

    def find(self, task: TaskRef) -> tuple[Domain, Task]:
        """The domain and the package's task."""
        domain_name, _, task_id = task.id.partition("/")
        domain = self.domains[domain_name]
        return domain, domain.tasks[task_id]

    def make(self) -> Tau2Env:
        from rllib_llm_async.envs.tau2.episode import Tau2Env

        return Tau2Env(self)

    @property
    def models(self) -> dict[str, ChatModel]:
        """By role, those that there are."""
        models = {"user": self.user, "judge": self.judge}
        return {role: model for role, model in models.items() if model is not None}

    def _check_that_no_judge_is_needed(self) -> None:
        from rllib_llm_async.envs.tau2.rewards import needs_judge

        for domain in self.domains.values():
            num_tasks = sum(map(needs_judge, domain.tasks.values()))
            if num_tasks:
                raise ValueError(
                    f"env_config.judge: missing; {num_tasks} tasks of domain "
                    f"{domain.name!r} are graded by a model, give the settings of its "
                    "endpoint, e.g. {model: NAME, base_url: URL}"
                )


def _check_names(domains: Sequence[str]) -> None:
    from tau2.registry import registry

    chosen_domains(() if domains is None else domains, registry.get_domains())


def _check_variant(variant: str | None) -> str:
    from rllib_llm_async.envs.tau2.knowledge import check_variant

    variant = _DEFAULT_VARIANT if variant is None else variant
    check_variant(variant)
    return variant


def _load(name: str, solo: bool, retrieval_variant: str | None) -> Domain:
    from rllib_llm_async.envs.tau2.load_domain import load_domain

    try:
        return load_domain(name, solo, retrieval_variant)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"env_config.retrieval_variant: {retrieval_variant!r} needs the package "
            f"{error.name!r}, which is not installed (docs/tau2.md); valid without it: "
            "golden_retrieval, full_kb, no_knowledge"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(
            f"env_config.domains: the data of tau2's domain {name!r} is missing: "
            f"{error.filename}; install tau2-bench from a whole checkout or set "
            "TAU2_DATA_DIR (docs/tau2.md)"
        ) from error
    except ValueError as error:
        raise ValueError(f"env_config.domains: {name!r}: {error}") from error
