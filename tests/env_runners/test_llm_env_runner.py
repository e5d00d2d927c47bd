"""The env runner's own part: its loop's thread, and waiting for its start."""

import asyncio
import concurrent.futures
import sys
from types import SimpleNamespace

import pytest

from rllib_llm_async.env_runners import llm_env_runner as module
from rllib_llm_async.env_runners.llm_env_runner import LLMEnvRunner


@pytest.fixture
def runner():
    """Without an engine."""
    runner = object.__new__(LLMEnvRunner)
    runner.worker_index, runner.failure = 1, None
    runner._loop = asyncio.new_event_loop()
    yield runner
    runner._loop.close()


def test_a_loop_that_ends_makes_its_runner_unhealthy(runner):
    runner._loop.call_soon(sys.exit, 3)
    runner._run_loop()
    with pytest.raises(RuntimeError, match="SystemExit"):
        runner.assert_healthy()


def test_a_start_that_takes_too_long_says_what_it_waits_for(runner, monkeypatch):
    monkeypatch.setattr(module, "START_TIMEOUT_SECONDS", 0.01)
    runner._started = concurrent.futures.Future()
    lines = ["endpoint http://users is down for 9 s"]
    runner._player = SimpleNamespace(waiting_for=lambda: lines)
    with pytest.raises(TimeoutError, match=r"env runner 1 .*http://users is down"):
        runner.wait_until_started()
    runner._started.set_exception(TimeoutError("of the engine"))
    with pytest.raises(TimeoutError, match="of the engine"):
        runner.wait_until_started()
