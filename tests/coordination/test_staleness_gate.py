"""The staleness bound, ordering by ordering."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.coordination.staleness_gate import StalenessGate


def test_bound_zero_is_synchronous():
    gate = StalenessGate(episodes_per_update=4, max_staleness=0)
    first = [gate.admit(1, 0, 2) for _ in range(2)]
    assert None not in first and gate.admit(1, 0, 2) is None
    gate.learner_version = 1
    gate.consume([ticket.number for ticket in first])
    assert gate.admit(1, 0, 2) is None  # the engine still samples with version 0
    assert gate.admit(1, 1, 2) is not None


def test_a_dead_runner_gives_back_what_it_had_under_way():
    gate = StalenessGate(episodes_per_update=4, max_staleness=0)
    done, lost = gate.admit(1, 0, 2), gate.admit(2, 0, 2)
    gate.deliver(done.number)
    assert gate.admit(1, 0, 2) is None
    assert gate.lose_runner(2) == lost.num_episodes
    assert gate.lose_runner(1) == 0  # what it delivered is safe
    assert gate.admit(1, 0, 2) is not None


@settings(max_examples=200, deadline=None)
@given(
    bound=st.integers(0, 3),
    groups_per_update=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_no_schedule_breaks_the_bound(bound, groups_per_update, order):
    """Random finishing orders and engine lags; the learner waits where told to."""
    gate = StalenessGate(2 * groups_per_update, bound)
    engine, running, finished, oldest = 0, [], [], []
    for _ in range(200):
        action = order.choice(["admit", "finish", "sync", "update"])
        if action == "admit" and (ticket := gate.admit(0, engine, 2)):
            running.append(ticket)
        elif action == "finish" and running:
            ticket = running.pop(order.randrange(len(running)))
            gate.deliver(ticket.number)
            finished.append(ticket)
        elif action == "sync":
            engine = gate.learner_version
        elif action == "update" and (numbers := gate.next_batch()):
            batch = [t for t in finished if t.number in numbers]
            finished = [t for t in finished if t.number not in numbers]
            assert len(batch) == groups_per_update
            oldest.append(max(gate.learner_version - t.born for t in batch))
            gate.learner_version += 1
            gate.consume(numbers)
    assert all(staleness <= bound for staleness in oldest)


def test_the_learner_waits_for_a_group_that_would_get_too_old():
    gate = StalenessGate(episodes_per_update=2, max_staleness=1)
    slow, quick = gate.admit(1, 0, 2), gate.admit(1, 0, 2)
    gate.deliver(quick.number)
    assert gate.next_batch() == [quick.number]  # slow can still be next
    gate.learner_version = 1
    gate.consume([quick.number])
    young = gate.admit(1, 1, 2)
    gate.deliver(young.number)
    assert gate.next_batch() == []  # slow is due now, and not finished
    gate.deliver(slow.number)
    assert gate.next_batch() == [slow.number]


def test_outstanding_leaves_out_what_is_in_training():
    gate = StalenessGate(episodes_per_update=4, max_staleness=1)
    tickets = [gate.admit(runner, 0, 4) for runner in (1, 2)]
    assert gate.outstanding(1) == {tickets[0].number}
    gate.deliver(tickets[0].number)
    assert gate.next_batch() == [tickets[0].number]
    assert gate.outstanding(1) == set() and gate.outstanding(2) == {tickets[1].number}


def test_what_is_forgotten_is_not_waited_for_and_late_news_of_it_is_harmless():
    gate = StalenessGate(episodes_per_update=4, max_staleness=0)
    old = [gate.admit(1, 0, 2) for _ in range(2)]
    gate.deliver(old[0].number)
    assert gate.admit(1, 0, 2) is None
    gate.forget()
    assert gate.outstanding(1) == set() and gate.next_batch() == []
    new = [gate.admit(1, 0, 2) for _ in range(2)]
    assert None not in new and gate.admit(1, 0, 2) is None
    assert {t.number for t in new}.isdisjoint(t.number for t in old)
    for ticket in old:  # from a runner that has not heard of the restore
        gate.deliver(ticket.number)
        gate.consume([ticket.number])
    assert gate.next_batch() == []
    for ticket in new:
        gate.deliver(ticket.number)
    assert gate.next_batch() == [t.number for t in new]
