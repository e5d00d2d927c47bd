"""One `rllib train file` for all tests that look at what such a run does and leaves.

The tuned example, for long enough to learn. It has keys in its environment, of which
nothing may remain, and is watched while it runs: which sockets of its processes others
can reach.
"""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import RLLIB, TUNED, environment, processes_of

#: By variable, what must be in no file and no line of a run.
KEYS = {
    name: f"{name.lower()}-not-to-be-seen"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "STUB_KEY")
}
NUM_ITERATIONS = 12
_LISTENS = "0A"
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", f"{1:08X}".rjust(32, "0"))


@dataclass
class WatchedRun:
    """What a run said and left.

    Attributes:
        home: All its files, Ray's too.
        num_processes: The most that were seen at a time.
        listeners: Pairs of a process and an address that others can reach.
    """

    home: Path
    said: str = ""
    num_processes: int = 0
    listeners: set[tuple[bytes, str]] = field(default_factory=set)

    @property
    def results(self) -> Path:
        return self.home / "results"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of result.json, one per iteration."""
        (path,) = self.results.rglob("result.json")
        return [json.loads(line) for line in path.read_text().splitlines()]

    @property
    def checkpoint(self) -> str:
        return re.search(r"^checkpoint: (.*)$", self.said, re.MULTILINE).group(1)

    def watch(self) -> None:
        processes = processes_of(self.home)
        self.num_processes = max(self.num_processes, len(processes))
        self.listeners |= _open_to_others(processes)


def train(home: Path) -> WatchedRun:
    """Trains, with an evaluation before and after, W&B offline and a comparison."""
    run = WatchedRun(home)
    log = home / "output"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(RLLIB, "train", "file", TUNED, "--storage-path", run.results),
                *("--stop", f"training_iteration={NUM_ITERATIONS}"),
                *("--set", f"evaluation_interval={NUM_ITERATIONS}"),
                *("--set", "evaluation_num_trials=2", "--wandb", "test"),
                *("--set", "compare_sources=[snapshot_old]"),
            ],
            env={
                **environment(home),
                **KEYS,
                "WANDB_MODE": "offline",
                "FORCE_COLOR": "1",  # as in a terminal, where there is a live view
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                run.watch()
                time.sleep(1)
        finally:
            process.kill()
    run.said = log.read_text()
    assert process.returncode == 0, run.said
    return run


def _open_to_others(processes: list[int]) -> set[tuple[bytes, str]]:
    """Listening TCP sockets of processes that are not on loopback."""
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == _LISTENS and address not in _LOOPBACK:
                listening[f"socket:[{inode}]"] = f"{address}:{int(port, 16)}"
    found = set()
    for process in (Path(f"/proc/{pid}") for pid in processes):
        try:
            name = (process / "cmdline").read_bytes()[:80]
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        found |= {(name, listening[link]) for link in links if link in listening}
    return found
