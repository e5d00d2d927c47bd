"""Faults of a run of `rllib train`, with real signals and a disk that is full."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    check_whole,
    read_metrics,
)
from rllib_llm_async.monitoring.owned_folders import SHARED_MEMORY
from rllib_llm_async.report import find_runs
from tests.end_to_end.commands import (
    SMALL,
    TUNED,
    Command,
    processes_of,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path):
    """Starts `rllib train file` with further arguments."""

    def start(*arguments, storage=None):
        storage = storage or tmp_path / "results"
        common = ("--storage-path", storage, "--set", "evaluation_interval=null")
        return Command(tmp_path, "train", "file", TUNED, *common, *SMALL, *arguments)

    return start


def whole_checkpoints(folder):
    """Iterations of the checkpoints below a folder; each is whole."""
    iterations = []
    for checkpoint in sorted(Path(folder).rglob("checkpoint_*")):
        check_whole(checkpoint)
        iterations.append(read_metrics(checkpoint)["training_iteration"])
    return iterations


@pytest.mark.parametrize(
    "learners",
    [["num_learners=1"], ["num_learners=2", "learner_sharding=fsdp2"]],
    ids=["alone", "sharded"],
)
def test_a_killed_learner_is_restarted(command, tmp_path, learners):
    with command(
        *("--checkpoint-freq", "2", "--stop", "training_iteration=5"),
        *(f"--set={setting}" for setting in learners),
        *("--max-failures", "1"),
    ) as run:
        run.wait_for_iteration(3)
        os.kill(processes_of(tmp_path, "_WrappedExecutable")[-1], signal.SIGKILL)
        assert run.wait() == 0
    assert re.search(r"failed: .*; restart 1 of 1 from iteration [24] ", run.output)
    assert whole_checkpoints(tmp_path) == [4, 5]
    (found,) = find_runs([tmp_path / "results"])
    assert [row["training_iteration"] for row in found.rows] == [1, 2, 3, 4, 5]


def test_a_killed_command_leaves_nothing_and_goes_on(command, tmp_path):
    arguments = ("--checkpoint-freq", "1", "--stop", "training_iteration=30")
    with command(*arguments) as run:
        run.wait_for_iteration(3)
        assert processes_of(tmp_path, "EngineCore")
        pids = processes_of(tmp_path)
        os.kill(run.process.pid, signal.SIGKILL)
        killed = time.monotonic()
        while processes_of(tmp_path) and time.monotonic() < killed + 60:
            time.sleep(0.1)
        print(f"gone {time.monotonic() - killed:.1f} s after the kill")
        assert processes_of(tmp_path) == []
    assert not [p for pid in pids for p in SHARED_MEMORY.glob(f"rllib_*_pid{pid}_*")]

    newest = sorted(tmp_path.rglob("checkpoint_*"))[-1]
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with command("--resume", "--stop", "training_iteration=5") as run:
        assert run.wait() == 0
    assert f"not resuming from {newest}: " in run.output
    assert re.search(r"resuming at iteration [1-9]", run.output)


def test_a_full_disk(command, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    try:
        arguments = ("--checkpoint-freq", "1", "--keep-checkpoints", "5")
        with command(*arguments, "--stop", "training_iteration=6", storage=disk) as run:
            code = run.wait()
        assert code in (0, 3)
        assert re.search(r"no checkpoint after iteration \d: No space left", run.output)
        assert "Traceback" not in run.output
        assert whole_checkpoints(disk)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_two_runs_on_one_cluster(command, tmp_path):
    actors_of_its_own = ("--set", "old_logprob_source=old_logit_model")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 8, "include_dashboard": False},
    )
    try:
        arguments = ("--address", cluster.address, "--stop", "training_iteration=2")
        with (
            command(*arguments, storage=tmp_path / "a") as first,
            command(*arguments, *actors_of_its_own, storage=tmp_path / "b") as second,
        ):
            assert (first.wait(), second.wait()) == (0, 0)
        for folder in ("a", "b"):
            assert whole_checkpoints(tmp_path / folder) == [2]
    finally:
        cluster.shutdown()
