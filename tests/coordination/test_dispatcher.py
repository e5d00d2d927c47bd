"""Late and double news, told to the dispatcher directly."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.ledger import Ledger, LedgerEpisode
from rllib_llm_async.coordination.staleness_gate import Ticket


def start(dispatcher, *runners):
    for runner in runners:
        dispatcher.register(runner, 10, 8, now=0.0)
        dispatcher.has_places(runner, 8, dispatcher.learner_version)


def test_double_news_of_a_group_in_training_is_ignored():
    dispatcher = Dispatcher(2, 1, 2)
    start(dispatcher, 0)
    number = dispatcher.allot(0.0)[0].number
    assert dispatcher.finish(number, 1.0)
    assert not dispatcher.finish(number, 1.0)
    (ticket,) = dispatcher.next_batch(1.0)
    assert ticket.number == number
    assert not dispatcher.finish(number, 2.0)
    dispatcher.consume([ticket])
    assert not dispatcher.finish(number, 3.0)


def test_the_time_of_an_update_is_known_that_an_evaluation_follows():
    dispatcher = Dispatcher(2, 1, 2)
    start(dispatcher, 0)
    (ticket,) = dispatcher.allot(0.0)
    dispatcher.finish(ticket.number, 1.0)
    batch = dispatcher.next_batch(1.0)
    dispatcher.publish(1, 31.0)
    dispatcher.consume(batch)
    dispatcher.pause(True, 31.0)
    dispatcher.pause(False, 51.0)
    dispatcher.next_batch(51.0)
    assert dispatcher.pacing.update_seconds == 30.0


def test_an_update_that_a_restore_cuts_off_has_no_time():
    dispatcher = Dispatcher(2, 1, 2)
    start(dispatcher, 0)
    (ticket,) = dispatcher.allot(0.0)
    dispatcher.finish(ticket.number, 1.0)
    dispatcher.next_batch(1.0)
    dispatcher.forget()
    dispatcher.next_batch(31.0)
    assert dispatcher.pacing.update_seconds is None


def adopted():
    """A dispatcher with two groups of a checkpoint, and a runner for one of them."""
    dispatcher = Dispatcher(4, 1, 2, ticket_timeout_s=30.0)
    for number in range(2):
        assert dispatcher.adopt(Ticket(number, 5, 0, 2), 0.0)
    dispatcher.next_number = 2
    dispatcher.register(0, 10, 2, now=0.0)
    dispatcher.has_places(0, 2, 0)
    return dispatcher


def test_the_time_of_a_checkpoints_group_counts_from_when_a_runner_has_it():
    dispatcher = adopted()
    assert [ticket.number for ticket in dispatcher.allot(0.0)] == [0]
    dispatcher.finish(0, 25.0)
    dispatcher._runners[0].heard_at = 50.0
    dispatcher.give_up_late(50.0)
    assert not dispatcher.take_dropped()
    dispatcher.has_places(0, 4, 0)
    assert [ticket.number for ticket in dispatcher.allot(50.0)] == [1]
    assert dispatcher.started(1) == 50.0
    dispatcher.finish(1, 60.0)
    assert [*dispatcher.pacing._durations] == [25.0, 10.0]


def test_a_checkpoints_group_that_a_runner_has_times_out_as_any_other():
    dispatcher = adopted()
    dispatcher.allot(20.0)
    dispatcher.give_up_late(49.0)
    assert not dispatcher.take_dropped()
    dispatcher.give_up_late(51.0)
    ((ticket, reason),) = dispatcher.take_dropped()
    assert (ticket.number, reason) == (0, "ticket_timeout")


def test_a_checkpoints_group_that_has_gone_is_given_to_nobody():
    dispatcher = adopted()
    dispatcher.drop(0, "timeout")
    assert [ticket.number for ticket in dispatcher.allot(0.0)] == [1]


@settings(deadline=None)
@given(bound=st.integers(0, 2), order=st.randoms(use_true_random=False))
def test_news_in_any_order_keeps_the_bound_and_the_books(bound, order):
    dispatcher, ledger = Dispatcher(4, bound, 2, ticket_timeout_s=30.0), Ledger()
    known, training, now = set(), [], 0.0
    for _ in range(150):
        now += order.random()
        action = order.choice(
            [
                "register",
                "lose",
                "places",
                "allot",
                "finish",
                "drop",
                "late",
                "begin",
                "end",
                "pause",
            ]
        )
        runner, number = order.randrange(2), order.randrange(dispatcher.next_number + 2)
        if action == "register":
            dispatcher.register(runner, 10, 8, now)
        elif action == "lose" and order.random() < 0.3:
            dispatcher.lose(runner)
        elif action == "places" and runner in dispatcher._runners:
            dispatcher.has_places(runner, 8, dispatcher.learner_version)
        elif action == "allot":
            for ticket in dispatcher.allot(now):
                known.add(ticket.number)
                ledger.start(ticket.number, 2, "a")
        elif action == "finish" and dispatcher.finish(number, now):
            episodes = [LedgerEpisode(key, 5, 1.0, "a") for key in range(2)]
            ledger.finish(number, episodes)
        elif action == "drop":
            dispatcher.drop(number, "timeout")
        elif action == "late":
            dispatcher.give_up_late(now)
        elif action == "begin" and not training:
            training = dispatcher.next_batch(now)
            ages = [dispatcher.learner_version - ticket.born for ticket in training]
            assert all(0 <= age <= bound for age in ages)
        elif action == "end" and training:
            dispatcher.publish(dispatcher.learner_version + 1, now)
            dispatcher.consume(training)
            for ticket in training:
                ledger.close(ticket.number)
            known -= {ticket.number for ticket in training}
            training = []
        elif action == "pause":
            dispatcher.pause(order.random() < 0.3, now)
        for ticket, reason in dispatcher.take_dropped():
            known.remove(ticket.number)  # once, and never one in training
            ledger.drop(ticket.number, reason)
        assert known == {*dispatcher._groups}
        assert ledger.identity_error() == 0
