"""The staleness bound, ordering by ordering."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.coordination.staleness_gate import StalenessGate, Ticket


class Gate(StalenessGate):
    """Numbers the groups that it admits."""

    num_admitted = 0

    def ask(self, runner, version, num_episodes):
        if not self.admits(version, num_episodes):
            return None
        ticket = Ticket(self.num_admitted, runner, version, num_episodes)
        self.num_admitted += 1
        self.admit(ticket)
        return ticket

    def batch(self):
        return [ticket.number for ticket in self.next_batch()]


def test_bound_zero_is_synchronous():
    gate = Gate(episodes_per_update=4, max_staleness=0)
    first = [gate.ask(1, 0, 2) for _ in range(2)]
    assert None not in first and gate.ask(1, 0, 2) is None
    for ticket in first:
        gate.deliver(ticket.number)
    assert gate.batch() == [0, 1]
    assert gate.ask(1, 0, 2) is None  # the next update is at version 1
    gate.learner_version = 1
    assert gate.ask(1, 0, 2) is None  # the engine still samples with version 0
    gate.consume([ticket.number for ticket in first])
    assert gate.ask(1, 0, 2) is None
    assert gate.ask(1, 1, 2) is not None


def test_what_is_in_training_makes_room_at_once():
    gate = Gate(episodes_per_update=2, max_staleness=1)
    first, second = gate.ask(1, 0, 2), gate.ask(1, 0, 2)
    assert gate.ask(1, 0, 2) is None
    gate.deliver(first.number)
    assert gate.batch() == [first.number]
    # The next update is at version 1: a group of version 0 has to be part of it.
    assert gate.ask(1, 0, 2) is None
    gate.learner_version = 1
    assert gate.ask(1, 1, 2) is not None  # though nobody has said "consumed" yet
    gate.consume([first.number])
    assert gate.ask(1, 1, 2) is None
    assert second.number in gate.outstanding


def test_an_update_without_a_signal_makes_no_room_for_older_versions():
    gate = Gate(episodes_per_update=2, max_staleness=0)
    ticket = gate.ask(1, 0, 2)
    gate.deliver(ticket.number)
    assert gate.batch() == [ticket.number]
    gate.consume([ticket.number])  # nothing was published
    assert gate.ask(1, 0, 2) is not None


@settings(deadline=None)
@given(
    bound=st.integers(0, 3),
    groups_per_update=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_no_schedule_breaks_the_bound(bound, groups_per_update, order):
    """Random finishing orders, engine lags and losses; the learner waits if told to."""
    gate = Gate(2 * groups_per_update, bound)
    engine, running, training, oldest = 0, [], [], []
    for _ in range(200):
        action = order.choice(["admit", "finish", "sync", "begin", "end", "lose"])
        if action == "admit" and (ticket := gate.ask(0, engine, 2)):
            running.append(ticket)
        elif action == "finish" and running:
            gate.deliver(running.pop(order.randrange(len(running))).number)
        elif action == "lose" and running and order.random() < 0.3:
            gate.consume([running.pop(order.randrange(len(running))).number])
        elif action == "sync":
            engine = gate.learner_version
        elif action == "begin" and not training and (batch := gate.next_batch()):
            training = batch
            assert len(batch) == groups_per_update
            oldest.append(max(gate.learner_version - t.born for t in batch))
        elif action == "end" and training:
            gate.learner_version += order.random() < 0.9  # or no signal
            gate.consume([t.number for t in training])
            training = []
        under_way = sum(t.num_episodes for t in gate.under_way())
        assert under_way == 2 * len(running)
    assert all(staleness <= bound for staleness in oldest)


def test_the_learner_waits_for_a_group_that_would_get_too_old():
    gate = Gate(episodes_per_update=2, max_staleness=1)
    slow, quick = gate.ask(1, 0, 2), gate.ask(1, 0, 2)
    gate.deliver(quick.number)
    assert gate.batch() == [quick.number]  # slow can still be next
    gate.learner_version = 1
    gate.consume([quick.number])
    young = gate.ask(1, 1, 2)
    gate.deliver(young.number)
    assert gate.batch() == []  # slow is due now, and not finished
    assert gate.awaited() == slow
    gate.deliver(slow.number)
    assert gate.batch() == [slow.number]


def test_what_is_forgotten_is_not_waited_for_and_late_news_of_it_is_harmless():
    gate = Gate(episodes_per_update=4, max_staleness=0)
    old = [gate.ask(1, 0, 2) for _ in range(2)]
    gate.deliver(old[0].number)
    assert gate.ask(1, 0, 2) is None
    gate.forget()
    assert not gate.outstanding and gate.batch() == []
    new = [gate.ask(1, 0, 2) for _ in range(2)]
    assert None not in new and gate.ask(1, 0, 2) is None
    assert {t.number for t in new}.isdisjoint(t.number for t in old)
    for ticket in old:  # from a runner that has not heard of the restore
        gate.deliver(ticket.number)
        gate.consume([ticket.number])
    assert gate.batch() == []
    for ticket in new:
        gate.deliver(ticket.number)
        gate.deliver(ticket.number)  # told twice
    assert gate.num_delivered_episodes == 4
    assert gate.batch() == [t.number for t in new]
