"""Temporary folders live as long as their process, however that ends."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rllib_llm_async.monitoring import owned_folders
from rllib_llm_async.monitoring.owned_folders import (
    OwnedFolder,
    SharedFolder,
    remove_abandoned_folders,
)

#: As a file of its own: importing the package would take seconds.
HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import owned_folders
owned_folders.SHARED_MEMORY = Path(sys.argv[2])
folder = owned_folders.OwnedFolder("weights", owned_folders.SHARED_MEMORY)
spill = owned_folders.OwnedFolder("spill")
Path(folder.name, "1.safetensors").write_text("x")
print(folder.name, spill.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Where temporary files and shared memory are, in this test and its processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(owned_folders, "SHARED_MEMORY", tmp_path)
    yield tmp_path
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def holder(folders):
    module = Path(owned_folders.__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, module, folders], stdout=subprocess.PIPE
    )
    paths = [Path(p) for p in process.stdout.readline().decode().split()]
    yield process, paths
    process.kill()
    process.wait()


def test_a_folder_lasts_until_it_is_given_up(folders):
    with OwnedFolder("checkpoint") as path:
        assert Path(path).parent == folders
        (Path(path) / "file").write_text("x")
        assert remove_abandoned_folders() == []
    assert list(folders.iterdir()) == []


def test_what_a_killed_process_leaves_is_removed(holder, folders):
    process, paths = holder
    assert remove_abandoned_folders() == [] and all(p.is_dir() for p in paths)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert all(p.is_dir() for p in paths)
    with OwnedFolder("weights"):  # whoever makes the next one does it
        assert not any(p.exists() for p in paths)


def test_other_folders_stay(folders):
    names = ["snapshots_1", "rllib_llm_async_x1y2", "rllib_llm_async_Other_pid1_a"]
    for name in names:
        (folders / name).mkdir()
    elsewhere = folders / "elsewhere"
    elsewhere.mkdir()
    (folders / "rllib_llm_async_weights_pid1_a").symlink_to(elsewhere)
    assert remove_abandoned_folders() == [] and elsewhere.is_dir()
    assert {p.name for p in folders.iterdir()} > set(names)


SHARE = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import owned_folders
folder = owned_folders.SharedFolder("weights", "key", Path(sys.argv[2]))
print(folder.name, flush=True)
time.sleep(600)
"""


def test_a_shared_folder_lasts_until_the_last_one_has_given_it_up_or_was_killed(
    folders,
):
    module = Path(owned_folders.__file__).parent
    other = subprocess.Popen(
        [sys.executable, "-c", SHARE, module, folders], stdout=subprocess.PIPE
    )
    path = Path(other.stdout.readline().decode().strip())
    first = SharedFolder("weights", "key", folders)
    assert Path(first.name) == path and path.is_dir()
    second = SharedFolder("weights", "another", folders)
    assert second.name != first.name
    first.cleanup()
    assert path.is_dir() and remove_abandoned_folders() == []
    first = SharedFolder("weights", "key", folders)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert remove_abandoned_folders() == [] and path.is_dir()
    first.cleanup()
    second.cleanup()
    assert list(folders.iterdir()) == []
