"""A real engine whose process is stopped or killed, or whose owner is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rllib_llm_async.engine.watchdog import EngineDiedError, EngineStalledError
from tests.engine.arrivals import Trainer
from tests.engine.engines import children, small_engine

pytestmark = pytest.mark.usefixtures("real_engines")

PROMPT = list(range(5, 20))


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """Of `VLLMEngine.install`."""
    return Trainer(tmp_path_factory.mktemp("versions")).send()


def core_of(engine):
    (process,) = engine._processes
    return process.pid


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def told(*calls):
    """The errors of calls that may not wait for ever."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.slow
def test_an_engine_that_hangs_fails_every_call(arguments):
    async def scenario():
        engine = small_engine(engine_timeout_s=3.0)
        await engine.start()
        # Work, then a pause, each longer than the timeout: no stall.
        end = time.monotonic() + 4.0
        while time.monotonic() < end:
            await asyncio.gather(*(engine.generate(PROMPT) for _ in range(16)))
        await engine.install(*arguments)
        await engine.interrupt()
        await asyncio.sleep(4.0)
        await engine.install(*arguments)
        os.kill(core_of(engine), signal.SIGSTOP)  # before a turn can end
        turns = [engine.generate(PROMPT) for _ in range(4)]
        errors = await told(
            *turns, engine.install(*arguments), engine.interrupt(), engine.failed()
        )
        assert [type(error) for error in errors] == [EngineStalledError] * 7
        # Some of these have been cancelled in the meantime.
        assert "in flight, version 0" in str(errors[0])
        assert "engine_timeout_s=3.0" in str(errors[0])
        return engine

    engine = asyncio.run(scenario())
    core = core_of(engine)
    assert is_running(core)
    engine.shutdown()
    assert not is_running(core)


def test_a_dead_engine_fails_every_call(arguments):
    async def scenario():
        engine = small_engine(engine_timeout_s=None)
        await engine.start()
        idle = asyncio.ensure_future(engine.failed())
        # Nor does it hold a semaphore, whose file a kill would leave.
        assert "/dev/shm/sem." not in Path(f"/proc/{core_of(engine)}/maps").read_text()
        await asyncio.sleep(1.5)
        assert not idle.done()
        os.kill(core_of(engine), signal.SIGSTOP)  # so that all are under way
        calls = [
            asyncio.ensure_future(call)
            for call in (
                engine.generate(PROMPT),
                engine.install(*arguments),
                engine.interrupt(),
            )
        ]
        await asyncio.sleep(0.5)
        os.kill(core_of(engine), signal.SIGKILL)
        errors = await told(idle, *calls)
        assert [type(error) for error in errors] == [EngineDiedError] * 4
        (late,) = await told(engine.generate(PROMPT))
        assert type(late) is EngineDiedError
        engine.shutdown()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_start_that_fails_leaves_no_process(monkeypatch):
    engine = small_engine()

    async def fail(llm):
        (pid,) = (process.pid for process in engine._processes)
        assert is_running(pid)
        raise ZeroDivisionError(pid)

    monkeypatch.setattr(engine._weights, "get_ready", fail)
    with pytest.raises(ZeroDivisionError) as error:
        asyncio.run(engine.start())
    assert not is_running(error.value.args[0])


@pytest.mark.slow  # of one that a runner owns: end_to_end/test_async_loop.py
@pytest.mark.parametrize("backend", ["uni", "mp"])
def test_the_engine_ends_with_its_owner(backend):
    env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(backend == "mp"))}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.engine.engines", backend],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
    ) as owner:
        try:
            while owner.stdout.readline() not in (b"started\n", b""):
                pass
            engine = children(owner.pid)
            engine += [worker for pid in engine for worker in children(pid)]
            assert len(engine) >= (2 if backend == "mp" else 1)
            assert all(map(is_running, engine))
        finally:
            owner.kill()
    for _ in range(100):
        if not any(map(is_running, engine)):
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"{[pid for pid in engine if is_running(pid)]} live on")
