"""Groups between two lives of a run: asked for when it saves, kept when it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from rllib_llm_async.coordination.staleness_gate import Ticket
from rllib_llm_async.env_runners.replay import Replay, num_tokens_of, versions_of
from rllib_llm_async.env_runners.transcript import sampled_under

#: A runner that does not answer for so long is left out of a checkpoint.
ANSWER_SECONDS = 10.0
#: What the members of a group had said, see `EpisodeService.under_way`.
Records = list[dict[str, Any] | None]


async def ask_for_records(
    numbers: Iterable[tuple[Any, Sequence[int]]],
) -> dict[int, Records]:
    """What the groups under way have said so far, by number.

    Args:
        numbers: Handles of runners, and the numbers of their groups.
    """

    async def ask(handle: Any, numbers: Sequence[int]) -> dict[int, Records]:
        async with asyncio.timeout(ANSWER_SECONDS):
            return await handle.under_way.remote(numbers)

    answers = await asyncio.gather(
        *(ask(handle, asked) for handle, asked in numbers if asked),
        # One that has died, or hangs, is the driver's business.
        return_exceptions=True,
    )
    return {
        number: records
        for answer in answers
        if not isinstance(answer, BaseException)
        for number, records in answer.items()
    }


@dataclass
class RestoredGroups:
    """What is known of a checkpoint's groups and no runner knows.

    ``version``: the learner's, at the checkpoint. ``sampled``: see
    `Coordinator.set_state`.
    """

    version: int = -1
    sampled: list[ray.ObjectRef] = field(default_factory=list)
    records: dict[int, Records] = field(default_factory=dict)
    #: Of those that were under way.
    numbers: set[int] = field(default_factory=set)

    def add(
        self, ticket: Ticket, records: Records | None, *, only_current: bool
    ) -> Ticket:
        """Takes a group that was under way.

        Args:
            ticket: Of the group.
            records: None if nothing is known of it.
            only_current: Whether only episodes of the current version can go on.

        Returns:
            The ticket that it goes on with: one of which nothing is left is born anew.
        """
        self.numbers.add(ticket.number)
        kept: Records = [
            record if record and not (only_current and self._is_older(record)) else None
            for record in records or ()
        ]
        if not any(kept):
            return replace(ticket, born=self.version)
        self.records[ticket.number] = kept
        return ticket

    def _is_older(self, record: dict[str, Any]) -> bool:
        return bool((versions_of(record) < self.version).any())

    def num_tokens(self, ticket: Ticket) -> int:
        """Tokens that a group goes on with."""
        records = self.records.get(ticket.number, [])
        return sum(num_tokens_of(record) for record in records if record)

    def take_records(self, tickets: Sequence[Ticket]) -> dict[int, Records]:
        """Of those of these groups that had begun; their runner has them then."""
        return {
            ticket.number: self.records.pop(ticket.number)
            for ticket in tickets
            if ticket.number in self.records
        }

    def sampled_under(self, version: int) -> list[ray.ObjectRef]:
        """What `interrupt` adds to the runners' answers: theirs are not these groups.

        Tokens of older versions have been scored before the checkpoint.
        """
        if version != self.version:
            return []
        waiting = {
            record["key"]: Replay(record).whole()
            for records in self.records.values()
            for record in records
            if record
        }
        return [*self.sampled, ray.put(sampled_under(version, waiting))]
