"""Why tokens are as old as they are when they are trained on."""

from __future__ import annotations

from collections.abc import Mapping

from rllib_llm_async import result_keys
from rllib_llm_async.coordination.messages import FinishedGroup


class TokenAge:
    """Splits the staleness of an update's tokens by where they grew old.

    A token of version u that was finished with its group while the learner stood at f
    and trained on at c is c - u old: f - u from generation, c - f from the queue.
    """

    def __init__(self) -> None:
        #: Of each finished group its tokens, and how old generation made them in all.
        self._finished: dict[int, tuple[int, float]] = {}
        self._sums = [0.0, 0.0, 0.0]
        self._held: dict[str, float] = {}
        self._since: float | None = None

    def finished(self, group: FinishedGroup, learner_version: int) -> None:
        """A group is finished while the learner holds ``learner_version``."""
        num_tokens, generation = 0, 0.0
        for outcome in group.outcomes:
            num_tokens += outcome.num_tokens
            generation += outcome.num_tokens * (learner_version - outcome.mean_version)
        self._finished[group.ticket.number] = num_tokens, generation

    def gone(self, number: int) -> None:
        """A group will not be trained on."""
        self._finished.pop(number, None)

    def trained(self, number: int, versions_in_queue: int) -> None:
        """A finished group is part of the next update."""
        num_tokens, generation = self._finished.pop(number)
        for index, value in enumerate(
            (num_tokens, generation, num_tokens * versions_in_queue)
        ):
            self._sums[index] += value

    def metrics(self, held: Mapping[str, float], now: float) -> dict[str, float]:
        """Result keys of the tokens since the last call, and what held places free.

        Args:
            held: Seconds for which places stayed free, by who held them back, since
                the start.
            now: The time.
        """
        num_tokens, generation, queue = self._sums
        self._sums = [0.0, 0.0, 0.0]
        result = {}
        if num_tokens:
            result[result_keys.STALENESS_FROM_GENERATION] = generation / num_tokens
            result[result_keys.STALENESS_FROM_QUEUE] = queue / num_tokens
        if self._since is not None and now > self._since:
            for who, key in (
                ("bound", result_keys.HELD_BY_BOUND_FRACTION),
                ("pacing", result_keys.HELD_BY_PACING_FRACTION),
            ):
                seconds = held.get(who, 0.0) - self._held.get(who, 0.0)
                result[key] = seconds / (now - self._since)
        self._held, self._since = dict(held), now
        return result
