"""Work beside the caller: its errors come back, and it can be given up."""

import threading

import pytest

from rllib_llm_async.transport.background import Background


def test_an_error_reaches_the_caller_once():
    background = Background("test")
    background.start(lambda check: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.end()
    background.end()
    background.raise_error()


def test_work_that_is_given_up_ends_at_its_next_check():
    background, begun, done = Background("test"), threading.Event(), []

    def work(check):
        begun.set()
        while True:
            check()

    background.start(work)
    begun.wait()
    background.cancel()
    background.end()
    # The next piece of work is not given up with it.
    background.start(lambda check: (check(), done.append(1)))
    background.end()
    assert done == [1]
