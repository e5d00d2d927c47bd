"""The tasks of VitaBench."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rllib_llm_async.envs.agent_env import TaskRef, ToolSchema
from rllib_llm_async.envs.chat_model import ChatModel, ReportsOnModels
from rllib_llm_async.envs.chat_model_settings import make_chat_model
from rllib_llm_async.envs.domains import chosen_domains
from rllib_llm_async.envs.vita.package import load_package
from rllib_llm_async.settings.names import unknown

if TYPE_CHECKING:
    from rllib_llm_async.envs.vita.episode import VitaEnv
    from rllib_llm_async.envs.vita.isolation import Compartment

DOMAINS = ("delivery", "instore", "ota", "cross_domain")
LANGUAGES = ("english", "chinese")
SPLITS = ("train", "test")
#: What a task of cross_domain is played in.
_CROSSED = ("delivery", "instore", "ota")
#: The judge that needs no model.
ORDER_MATCH = "order_match"
#: The package has no splits: a task is in test if its id hashes to one of these of ten.
_TEST_TENTHS = (0, 1, 2)


class VitaSuite(ReportsOnModels):
    """Tasks of one or several domains, with their data in memory.

    Args:
        domains: Names out of `DOMAINS`; all if None.
        language: Of tasks, tools and prompts, out of `LANGUAGES`.
        user: Settings of the chat model that plays the user, see `make_chat_model`.
        judge: Settings of the chat model that judges the rubrics, or "order_match" to
            compare the orders with the task's reference (domain delivery only).
        max_turns: Assistant turns after which an episode is truncated. The package
            stops after 300 steps of agent, user and tools, which are 150 such turns.

    Raises:
        ValueError: If a setting cannot be, or the package or a domain's data is absent.
    """

    name = "vita"

    def __init__(
        self,
        domains: Sequence[str] | None = None,
        language: str = "english",
        user: Any = None,
        judge: Any = None,
        max_turns: int = 150,
    ) -> None:
        self.domains = chosen_domains(domains, DOMAINS)
        _check_choice("language", language, LANGUAGES)
        if type(max_turns) is not int or max_turns < 1:
            raise ValueError(
                f"env_config.max_turns: got {max_turns!r}, need 1 or more turns"
            )
        if isinstance(judge, str):
            _check_choice("judge", judge, (ORDER_MATCH,))
        if judge == ORDER_MATCH and self.domains != ["delivery"]:
            raise ValueError(
                "env_config.judge: order_match needs env_config.domains: [delivery]"
            )
        self.language = language
        self.max_turns = max_turns
        self.models: dict[str, ChatModel] = {
            "user": make_chat_model(user, "env_config.user")
        }
        if judge != ORDER_MATCH:
            self.models["judge"] = make_chat_model(judge, "env_config.judge")
        load_package()
        self._tasks = {domain: self._load_tasks(domain) for domain in self.domains}
        self._tools = {domain: self._load_tools(domain) for domain in self.domains}

    def tasks(self, split: str) -> list[TaskRef]:
        """All tasks of a split, the same ones at every call."""
        _check_choice("split", split, SPLITS)
        return [
            TaskRef(self.name, key, split)
            for key in (f"{d}/{id_}" for d in self.domains for id_ in self._tasks[d])
            if (zlib.crc32(key.encode()) % 10 in _TEST_TENTHS) == (split == "test")
        ]

    def make(self) -> VitaEnv:
        from rllib_llm_async.envs.vita.episode import VitaEnv
        from rllib_llm_async.envs.vita.judge import RubricJudge
        from rllib_llm_async.envs.vita.order_match import OrderMatch

        judge = (
            RubricJudge(self.models["judge"], self.language)
            if "judge" in self.models
            else OrderMatch()
        )
        return VitaEnv(self, self.models["user"], judge)

    def task(self, ref: TaskRef) -> tuple[str, Any]:
        """The domain and the package's task."""
        domain, _, id_ = ref.id.partition("/")
        return domain, self._tasks[domain][id_]

    def tool_schemas(self, domain: str) -> list[ToolSchema]:
        """OpenAI schemas of the domain's tools, the same for all of its tasks."""
        return self._tools[domain]

    def compartment(self) -> Compartment:
        """A new place for an episode's data."""
        from rllib_llm_async.envs.vita.isolation import Compartment

        return Compartment(self.language)

    def build(self, domain: str, task: Any) -> Any:
        """The package's environment of a task; call it inside a compartment."""
        from vita.environment.environment import get_cross_environment
        from vita.registry import registry

        if domain == "cross_domain":
            return get_cross_environment(
                ",".join(_CROSSED), task.environment, self.language
            )
        return registry.get_env_constructor(domain)(task.environment, self.language)

    def _load_tasks(self, domain: str) -> dict[str, Any]:
        from vita.registry import registry

        with self.compartment() as compartment:
            try:
                tasks = registry.get_tasks_loader(domain)(self.language)
            except FileNotFoundError as error:
                raise ValueError(
                    f"env_config.domains: the VitaBench package has no {self.language} "
                    f"tasks of {domain!r}: {error.filename} is absent"
                ) from error
        compartment.discard()
        return {task.id: task for task in tasks}

    def _load_tools(self, domain: str) -> list[ToolSchema]:
        with self.compartment() as compartment:
            environment = self.build(domain, next(iter(self._tasks[domain].values())))
            schemas = [tool.openai_schema for tool in environment.get_tools()]
        compartment.discard()
        return schemas


def _check_choice(key: str, value: Any, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"env_config.{key}: {unknown(value, valid)}")
