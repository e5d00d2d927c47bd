"""A command that is killed takes its processes with it; one that ends does not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rllib_llm_async.cli import reaper

pytestmark = pytest.mark.thorough

#: A command with a child that ignores everything but SIGKILL, in a group of its own.
COMMAND = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import reaper
with reaper.reaper():
    child = subprocess.Popen([sys.executable, "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"],
        start_new_session=True, stdout=subprocess.DEVNULL)
    print(child.pid, os.environ[reaper.MARK], flush=True)
    sys.stdin.read(1)
"""


@pytest.fixture
def command():
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, Path(reaper.__file__).parent],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    child, mark = process.stdout.readline().decode().split()
    assert reaper.find_processes(mark) == [int(child)]
    yield process, mark
    process.kill()
    process.wait()
    reaper.end_processes(mark)


def test_killed(command):
    process, mark = command
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while reaper.find_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert reaper.find_processes(mark) == []


def test_ended_in_order(command):
    process, mark = command
    process.communicate(b"x", timeout=20)
    assert process.returncode == 0
    assert len(reaper.find_processes(mark)) == 1  # nobody was killed
    assert reaper.MARK not in os.environ
