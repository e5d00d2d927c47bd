"""What a checkpoint holds of a `Coordinator`, and how one goes on from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rllib_llm_async.coordination.ledger import LOST, STALE
from rllib_llm_async.coordination.restored_groups import RestoredGroups, ask_for_records
from rllib_llm_async.coordination.staleness_gate import Ticket

if TYPE_CHECKING:
    import ray

    from rllib_llm_async.coordination.coordinator import Coordinator

#: What was in flight and is not there any more was dropped for this reason.
RESTORED = "restored"


async def get_state(coordinator: Coordinator) -> dict[str, Any]:
    """Counters, finished groups, and those under way.

    Returns:
        Numbers, strings, lists, dicts and arrays, but for two entries. ``finished``:
        of each finished group the `FinishedGroup`, and the version that the learner
        held when it was finished. ``outcomes``: those that the driver has not heard of.
        ``under_way`` is plain: of each group the fields of its `Ticket`, and what its
        members have said (see `EpisodeService.under_way`), None if its runner does not
        answer.
    """
    dispatcher = coordinator._dispatcher
    # Of groups that no runner has yet; one may get them while it is asked.
    waiting = dict(coordinator._restored.records)
    records = waiting | await ask_for_records(
        (
            mailbox.handle,
            [t.number for t in dispatcher.under_way() if t.runner == runner],
        )
        for runner, mailbox in coordinator._mailboxes.items()
    )
    # From here on nothing is awaited: it is one moment that is kept.
    return {
        "version": dispatcher.learner_version,
        "task_position": dispatcher.tasks.position,
        "next_ticket": dispatcher.next_number,
        "ledger": coordinator._ledger.get_state(),
        "outcomes": list(coordinator._outcomes),
        "dropped": dict(coordinator._dropped),
        "finished": [
            (group, dispatcher.finished_at_version(number))
            for number, group in sorted(coordinator._ready.items())
        ],
        "under_way": [
            (asdict(ticket), records.get(ticket.number))
            for ticket in dispatcher.under_way()
        ],
    }


def will(coordinator: Coordinator) -> dict[str, Any]:
    """What `set_state` of another coordinator takes, should this one die."""
    dispatcher = coordinator._dispatcher
    return {
        "version": dispatcher.learner_version,
        "task_position": dispatcher.tasks.position,
        "next_ticket": dispatcher.next_number,
        "ledger": coordinator._ledger.get_state_if_lost(),
        "outcomes": [],
        "dropped": {LOST: coordinator._ledger.num_episodes_in_flight()},
        "finished": [],
        "under_way": [],
    }


async def set_state(
    coordinator: Coordinator, state: dict[str, Any], sampled: list[ray.ObjectRef]
) -> None:
    """Goes on from what `get_state` returned, in place of what is held.

    Finished groups wait for their update again. Those that were under way are given out
    again before any other, under their numbers. What is too old for the bound of this
    run is dropped as "stale".

    Args:
        coordinator: Of the run.
        state: See `get_state`.
        sampled: References to token columns of the finished groups, which `interrupt`
            returns beside those of the runners.
    """
    await coordinator.forget_episodes()
    dispatcher, ledger = coordinator._dispatcher, coordinator._ledger
    now, version = coordinator._now(), state["version"]
    dispatcher.publish(version, now)
    dispatcher.tasks.position = state["task_position"]
    dispatcher.next_number = state["next_ticket"]
    ledger.set_state(state["ledger"])
    coordinator._outcomes = list(state["outcomes"])
    coordinator._dropped.clear()  # that was another life
    coordinator._dropped.update(state["dropped"])
    restored = coordinator._restored = RestoredGroups(version, sampled)
    too_old = []
    for group, finished_at in state["finished"]:
        if dispatcher.adopt(group.ticket, now, finished_at):
            coordinator._ready[group.ticket.number] = group
            coordinator._age.finished(group, finished_at)
        else:
            too_old.append(group.ticket)
    for plain, records in state["under_way"]:
        # An actor that scores has the weights of this version alone.
        only_current = coordinator._old_logit_pool is not None
        ticket = restored.add(Ticket(**plain), records, only_current=only_current)
        if dispatcher.adopt(ticket, now):
            ledger.go_on(ticket.number, restored.num_tokens(ticket), RESTORED)
        else:
            too_old.append(ticket)
    for ticket in too_old:
        ledger.drop(ticket.number, STALE)
        coordinator._dropped[STALE] += ticket.num_episodes
    adopted = {*coordinator._ready, *(t.number for t in dispatcher.under_way())}
    ledger.lose_in_flight(RESTORED, keep=adopted)
