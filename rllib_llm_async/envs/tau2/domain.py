"""A domain of tau2-bench: its tasks, and environments that cost little to make."""

from __future__ import annotations

import inspect
from copy import deepcopy
from functools import partial
from typing import Any

from tau2.data_model.tasks import RewardType, Task
from tau2.environment.environment import Environment
from tau2.environment.toolkit import ToolKitBase
from tau2.registry import registry
from tau2.utils.utils import get_dict_hash

from rllib_llm_async.envs.agent_env import ToolSchema
from rllib_llm_async.envs.chat_model import ChatModel
from rllib_llm_async.envs.tau2.calculator import bounded
from rllib_llm_async.envs.tau2.participants import PushAgent, PushSoloAgent, PushUser
from rllib_llm_async.envs.tau2.shared_db import content, share, writing

#: Stands for a tool call that could not be read. No domain has a tool of that name, so
#: that it changes nothing, when it is replayed, too.
MALFORMED_CALL = "malformed_tool_call"


class Domain:
    """What all episodes of a domain share; `load_domain` makes it.

    Args:
        name: As registered with the package.
        solo: The agent has the user's tools as well, and there is no user.
        **settings: More of the package's arguments for the domain's environments.

    Raises:
        FileNotFoundError: If the package's data is not there.
        ValueError: If the domain cannot be played solo.
    """

    #: Tools that take longer than other episodes should wait. They run in a thread, and
    #: so must not share what they write to.
    slow_tools: frozenset[str] = frozenset()

    def __init__(self, name: str, solo: bool, **settings: Any) -> None:
        self.name = name
        self.solo = solo
        self._construct = partial(registry.get_env_constructor(name), **settings)
        self._pristine = self._construct(**({"solo_mode": True} if solo else {}))
        tasks = registry.get_tasks_loader(name)(None)
        if solo:
            is_valid = registry.get_agent_task_filter("llm_agent_solo")
            tasks = [task for task in tasks if is_valid(task)]
        self.tasks: dict[str, Task] = {task.id: task for task in tasks}
        splits_loader = registry.get_task_splits_loader(name)
        splits = splits_loader() if splits_loader else {"base": list(self.tasks)}
        #: Task ids by split, as the package declares them.
        self.splits: dict[str, list[str]] = {
            split: [task_id for task_id in self.tasks if task_id in members]
            for split, members in ((s, frozenset(ids)) for s, ids in splits.items())
        }
        # Tools are only asked for their schemas: one set serves all episodes.
        self._agent_tools = self._pristine.get_tools()
        user_tools = self._pristine.user_tools
        self._user_tools = {} if user_tools is None else user_tools.get_tools()
        if solo:
            self._agent_tools += self._user_tools.values()
        self._agent_schemas: list[ToolSchema] = []
        self._user_schemas = {
            name: tool.openai_schema for name, tool in self._user_tools.items()
        }
        self._goal_of_task: dict[str, tuple[str, bool]] = {}
        for task in self.tasks.values():
            criteria = task.evaluation_criteria
            if criteria is not None and RewardType.DB in criteria.reward_basis:
                self.goal(task)

    def make_environment(self, task: Task, *, solo: bool) -> Environment:
        """An environment of one's own, in the state that all tasks begin from."""
        settings: dict[str, Any] = {"solo_mode": True} if solo else {}
        pristine = self._pristine
        if pristine.user_tools is None:
            # Only the agent's tools write, and only those that say so.
            settings["db"] = share(pristine.tools.db)
        else:
            settings["db"] = deepcopy(pristine.tools.db)
            if "user_db" in inspect.signature(self._construct).parameters:
                settings["user_db"] = deepcopy(pristine.user_tools.db)
        environment = self._construct(**settings)
        guard(environment.tools)
        return environment

    def make_agent(self, environment: Environment, task: Task) -> PushAgent:
        settings: dict[str, Any] = {
            "tools": list(self._agent_tools),
            "domain_policy": environment.get_policy(),
            "llm": "",
        }
        if self.solo:
            return PushSoloAgent(task=task, **settings)
        return PushAgent(**settings)

    def agent_schemas(self, agent: PushAgent) -> list[ToolSchema]:
        """Of the tools that all agents of the domain have."""
        if not self._agent_schemas:
            self._agent_schemas = [tool.openai_schema for tool in agent.tools]
        return self._agent_schemas

    def make_user(self, model: ChatModel, task: Task) -> PushUser:
        names = [
            name
            for name in self._user_tools
            if task.user_tools is None or name in task.user_tools
        ]
        return PushUser(
            model,
            [self._user_schemas[name] for name in names],
            instructions=str(task.user_scenario),
            tools=[self._user_tools[name] for name in names] or None,
        )

    def state(self, environment: Environment) -> str:
        """A hash that is equal where the package's hashes of both databases are."""
        pristine = self._pristine
        state = {"agent": content(environment.tools.db, pristine.tools.db)}
        user_tools = environment.user_tools
        if user_tools is not None and user_tools.db is not environment.tools.db:
            state["user"] = content(environment.user_tools.db, pristine.user_tools.db)
        return get_dict_hash(state)

    def goal(self, task: Task) -> tuple[str, bool]:
        """The state that the task's reference actions lead to.

        Returns:
            Its hash, and whether it differs from the one that the task begins with.
        """
        if task.id not in self._goal_of_task:
            environment = self.make_environment(task, solo=False)
            initial = task.initial_state
            with writing(environment.tools.db):
                environment.set_state(
                    initialization_data=initial and initial.initialization_data,
                    initialization_actions=initial and initial.initialization_actions,
                    message_history=(initial and initial.message_history) or [],
                )
            begin = self.state(environment)
            for action in task.evaluation_criteria.actions or []:
                try:
                    environment.make_tool_call(
                        action.name, requestor=action.requestor, **action.arguments
                    )
                except Exception:
                    # E.g. one whose precondition is not met: the package goes on.
                    continue
            end = self.state(environment)
            self._goal_of_task[task.id] = end, end != begin
        return self._goal_of_task[task.id]


def guard(tools: ToolKitBase) -> None:
    """Makes an episode's tools safe to be called by any agent."""
    if tools.has_tool("calculate"):
        tools.calculate = bounded(tools.calculate)
    tools.use_tool = partial(_use_tool, tools, tools.use_tool)


def _use_tool(tools: ToolKitBase, original, tool_name: str, **arguments: Any) -> Any:
    if tool_name == MALFORMED_CALL:
        raise ValueError("malformed tool call, need a name and a JSON object")
    if tools.has_tool(tool_name) and tools.tool_mutates_state(tool_name):
        with writing(tools.db):
            return original(tool_name=tool_name, **arguments)
    return original(tool_name=tool_name, **arguments)
