"""A run listens on loopback alone, and leaves no key behind."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

RLLIB = [sys.executable, "-c", "from rllib_llm_async.cli import main; main()"]
TUNED = "tuned_examples/mini_tau2_ppo_ewma_async.yaml"
#: By variable, what must be in no file and no line of a run.
KEYS = {
    name: f"{name.lower()}-not-to-be-seen"
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "STUB_KEY")
}
_LISTENS = "0A"
_LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", f"{1:08X}".rjust(32, "0"))


@pytest.fixture
def tmp_path():
    """Not pytest's own: Ray's socket paths must stay below 108 characters."""
    with tempfile.TemporaryDirectory(prefix="rllib_") as directory:
        yield Path(directory)


def processes_of(directory):
    """Those whose environment names a directory, and what they are called."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory).encode() in (entry / "environ").read_bytes():
                found[entry] = (entry / "cmdline").read_bytes()[:80]
        except OSError:
            continue
    return found


def open_to_others(directory):
    """Listening TCP sockets of a run's processes that are not on loopback."""
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            if state == _LISTENS and address not in _LOOPBACK:
                listening[f"socket:[{inode}]"] = f"{address}:{int(port, 16)}"
    found = set()
    for process, name in processes_of(directory).items():
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        found |= {(name, listening[link]) for link in links if link in listening}
    return found


def test_a_run_is_open_to_nobody_and_keeps_no_key(tmp_path):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("WANDB_")},
        **KEYS,
        "HOME": str(tmp_path),
        "RAY_TMPDIR": str(tmp_path),
        "WANDB_MODE": "offline",
    }
    small = ("episodes_per_update=16", "num_concurrent_episodes=16", "minibatch_size=8")
    log = tmp_path / "output"
    train = subprocess.Popen(
        [
            *(*RLLIB, "train", "file", TUNED, "--storage-path", tmp_path / "results"),
            *("--wandb", "p", "--stop", "training_iteration=1"),
            *("--set", "evaluation_interval=1", "--set", "evaluation_duration=4"),
            *("--set", "env_config.user_seconds=0"),
            *(f"--set={setting}" for setting in small),
        ],
        env=environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    num_processes, listeners = 0, set()
    try:
        while train.poll() is None:
            num_processes = max(num_processes, len(processes_of(tmp_path)))
            listeners |= open_to_others(tmp_path)
            time.sleep(1)
    finally:
        train.kill()
    assert train.returncode == 0, log.read_text()
    assert num_processes > 5  # Ray's own, the driver, the runner, its engine
    assert listeners == set()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"result.json", "metadata.json", "dialogues.jsonl", "raylet.out"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for key in KEYS.values():
        assert [p for p in files if key.encode() in p.read_bytes()] == []
