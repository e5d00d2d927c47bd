"""The tasks of a suite, whoever wrote it."""

from __future__ import annotations

from rllib_llm_async.envs.agent_env import TaskRef, TaskSuite


def tasks_of(suite: TaskSuite, split: str) -> list[TaskRef]:
    """All tasks of a split, in their order.

    Raises:
        ValueError: If there are none, or what is there is no `TaskRef` with a text
            for an id.
    """
    where = f"env: {type(suite).__name__}.tasks({split!r})"
    try:
        tasks = list(suite.tasks(split))
    except ValueError:
        raise
    except Exception as error:  # whatever a class of somebody else's raises
        raise ValueError(f"{where} fails ({error!r})") from error
    if not tasks:
        raise ValueError(f"{where} gives none")
    for task in tasks:
        if not isinstance(task, TaskRef):
            raise ValueError(f"{where} gives {task!r}, which is no TaskRef")
        if not isinstance(task.id, str):
            raise ValueError(f"{where} gives {task!r}, whose id is no text")
    return tasks
