"""Running `rllib` as a user does: a process of its own, with a small job."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

RLLIB = Path(sys.executable).with_name("rllib")
TUNED = Path("tuned_examples/mini_tau2_ppo_ewma_async.yaml")
SMALL = [
    f"--set={key}={value}"
    for key, value in {
        "episodes_per_update": 16,
        "num_concurrent_episodes": 16,
        "minibatch_size": 8,
        "evaluation_duration": 8,
        "evaluation_num_trials": 2,
    }.items()
]


def environment(tmp_path):
    # No account, and nothing about it in the environment.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    return {**kept, "HOME": str(tmp_path), "RAY_TMPDIR": str(tmp_path)}


class Command:
    """`rllib` with some arguments, in a group of its own; a context manager."""

    def __init__(self, tmp_path, *arguments):
        self.process = subprocess.Popen(
            [RLLIB, *arguments],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, pattern, timeout=600):
        """Waits for a line of the output."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.output, re.MULTILINE):
            running = self.process.poll() is None
            assert running and time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def wait_for_iteration(self, number):
        self.wait_for(rf" s +{number} ")

    def wait(self, timeout=600):
        """The exit code."""
        code = self.process.wait(timeout)
        self._reader.join()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.wait()
        print(self.output)


def processes_of(tmp_path, name=""):
    """Ids of live processes that a command with this folder started."""
    entry, found = f"RAY_TMPDIR={tmp_path}".encode(), []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            ours = entry in (directory / "environ").read_bytes().split(b"\0")
            command = (directory / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if ours and name in command:
            found.append(int(directory.name))
    return found
