"""Which task comes next: every task once, in a new order each time around."""

from __future__ import annotations

import random


class TaskOrder:
    """An endless order of tasks that a seed and a position determine.

    So a checkpoint keeps one number, and a run that goes on from it goes on with the
    tasks that had not been given out.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._round: tuple[int, int] | None = None
        self._tasks: list[int] = []
        #: How many tasks have been given out.
        self.position = 0

    def next(self, num_tasks: int) -> int:
        """Position in the suite of the next task.

        Args:
            num_tasks: How many tasks the suite has.
        """
        number, place = divmod(self.position, num_tasks)
        self.position += 1
        if self._round != (number, num_tasks):
            self._round = number, num_tasks
            self._tasks = [*range(num_tasks)]
            random.Random(f"{self._seed}/{number}").shuffle(self._tasks)
        return self._tasks[place]
