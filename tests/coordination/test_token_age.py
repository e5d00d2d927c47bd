"""Why tokens are old, by hand."""

from types import SimpleNamespace

import pytest

from rllib_llm_async.coordination.dispatcher import Dispatcher
from rllib_llm_async.coordination.task_order import TaskOrder
from rllib_llm_async.coordination.token_age import TokenAge
from tests.coordination.test_dispatcher import start


def group(number, *outcomes):
    return SimpleNamespace(
        ticket=SimpleNamespace(number=number),
        outcomes=[SimpleNamespace(num_tokens=n, mean_version=v) for n, v in outcomes],
    )


def test_the_age_of_tokens_is_split_by_where_they_grew_old():
    age = TokenAge()
    age.metrics({"bound": 1.0, "pacing": 2.0}, now=10.0)
    # 30 tokens finished 1 version old, 10 not; 20 of another group 2.
    age.finished(group(0, (30, 4.0), (10, 5.0)), learner_version=5)
    age.finished(group(1, (20, 3.0)), learner_version=5)
    age.finished(group(2, (99, 0.0)), learner_version=5)
    age.gone(2)
    age.trained(0, versions_in_queue=0)
    age.trained(1, versions_in_queue=3)
    found = age.metrics({"bound": 2.0, "pacing": 6.0}, now=20.0)
    assert found == {
        "staleness_from_generation": pytest.approx((30 * 1 + 20 * 2) / 60),
        "staleness_from_queue": pytest.approx(20 * 3 / 60),
        "held_by_bound_fraction": pytest.approx(0.1),
        "held_by_pacing_fraction": pytest.approx(0.4),
    }
    later = age.metrics({"bound": 2.0, "pacing": 6.0}, now=30.0)
    assert later == {"held_by_bound_fraction": 0.0, "held_by_pacing_fraction": 0.0}
    with pytest.raises(KeyError):
        age.trained(2, 0)


def test_a_group_knows_how_many_versions_it_waited_in_the_queue():
    dispatcher = Dispatcher(2, 3, 2)
    dispatcher.publish(4, 0.0)
    start(dispatcher, 0)
    number = dispatcher.allot(0.0)[0].number
    dispatcher.publish(5, 1.0)
    dispatcher.finish(number, 2.0)
    assert dispatcher.finished_at_version(number) == 5
    dispatcher.publish(7, 3.0)
    assert dispatcher.versions_in_queue(number) == 2


def test_places_that_stay_free_are_counted_by_what_held_them():
    dispatcher = Dispatcher(2, 0, 2)
    start(dispatcher, 0)
    dispatcher.pacing.start_at = lambda now, look: now
    assert len(dispatcher.allot(0.0)) == 1  # one update's worth is all of bound 0
    dispatcher.allot(3.0)
    dispatcher.allot(5.0)
    assert dispatcher.held["bound"] == 5.0 and not dispatcher.held["pacing"]


def test_time_in_which_environments_wait_for_what_is_down_gives_no_group_up():
    dispatcher = Dispatcher(2, 1, 2, ticket_timeout_s=10.0)
    start(dispatcher, 0)
    dispatcher.allot(0.0)
    for seconds in (3.0, 5.0):  # in all, not each
        dispatcher.has_waited(0, seconds)
    dispatcher.give_up_late(14.9)
    assert dispatcher.take_dropped() == []
    dispatcher.give_up_late(15.1)
    assert {reason for _, reason in dispatcher.take_dropped()} == {"ticket_timeout"}


def test_a_finished_group_may_wait_for_its_update_for_any_time():
    dispatcher = Dispatcher(2, 1, 2, ticket_timeout_s=10.0)
    start(dispatcher, 0)
    number = dispatcher.allot(0.0)[0].number
    dispatcher.finish(number, 1.0)
    dispatcher.give_up_late(50.0)
    assert number not in {t.number for t, _ in dispatcher.take_dropped()}
    assert [t.number for t in dispatcher.next_batch(50.0)] == [number]


def test_a_runner_hears_of_groups_that_have_gone():
    dispatcher = Dispatcher(2, 1, 2)
    start(dispatcher, 0)
    (dropped,) = [ticket.number for ticket in dispatcher.allot(0.0)]
    dispatcher.drop(dropped, "timeout")
    (trained,) = [ticket.number for ticket in dispatcher.allot(0.0)]
    dispatcher.finish(trained, 1.0)
    dispatcher.consume(dispatcher.next_batch(1.0))
    assert dispatcher._runners[0].settled == [dropped, trained]


def test_another_seed_is_another_order_and_the_same_one_is_not():
    def order(seed):
        tasks = TaskOrder(seed)
        return [tasks.next(20) for _ in range(40)]

    first, second = order(0)[:20], order(0)[20:]
    assert sorted(first) == sorted(second) == [*range(20)] and first != second
    assert order(0) == order(0) != order(1)


def test_a_runner_that_goes_takes_its_places_along():
    dispatcher = Dispatcher(2, 1, 2)
    start(dispatcher, 0, 1)
    dispatcher.lose(1)
    assert dispatcher._look().num_places == 8


def test_a_group_waits_for_a_newer_version_that_is_about_to_come():
    dispatcher = Dispatcher(2, 3, 2)
    dispatcher.pacing.start_at = lambda now, look: now
    dispatcher.pacing.update_seconds = 10.0
    start(dispatcher, 0)
    dispatcher.publish(1, 100.0)  # the engine still has 0; a tenth of an update
    assert dispatcher.allot(100.5) == []
    assert {t.born for t in dispatcher.allot(101.5)} == {0}
