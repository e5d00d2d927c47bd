"""A version is readable whole or not at all, whoever writes or dies meanwhile."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from rllib_llm_async.transport.shipment import SupersededError
from rllib_llm_async.transport.weight_file import WeightFile, held

SHAPES = {"a": torch.Size([3, 5]), "b": torch.Size([7]), "c": torch.Size([2, 1, 2])}


def fill(file):
    for number, tensor in enumerate(file.tensors.values()):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + number)


def read(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def file(tmp_path):
    file = WeightFile(tmp_path, SHAPES, torch.bfloat16)
    fill(file)
    return file


def test_safetensors_reads_what_was_written(file):
    file.show("1")
    with held(file.path) as path:
        tensors = read(path)
    assert {n: t.shape for n, t in tensors.items()} == SHAPES
    narrow, wide = torch.bfloat16, torch.float32
    assert {n: t.dtype for n, t in tensors.items()} == {
        "a": narrow,
        "b": wide,
        "c": narrow,
    }
    assert all(torch.equal(t, file.tensors[n]) for n, t in tensors.items())
    assert file.nbytes == file.path.stat().st_size
    assert file.flat.nbytes == file.nbytes - file.start


def test_nobody_reads_what_is_written_or_was_taken_back(file, tmp_path):
    with pytest.raises(SupersededError), held(file.path):
        pass
    file.show("1")
    shown = file.path
    assert file.take_back()
    for path in (shown, file.path):
        with pytest.raises(SupersededError), held(path):
            pass


def test_what_is_read_is_not_taken_back(file):
    file.show("1")
    with held(file.path), held(file.path):
        assert not file.take_back()
    assert file.take_back()


def test_who_reads_comes_to_the_end_of_a_file_that_was_removed(file):
    file.show("1")
    with held(file.path) as path:
        file.remove()
        code = "import sys; print(len(open(sys.argv[1], 'rb').read()))"
        said = subprocess.check_output([sys.executable, "-c", code, path])
        assert int(said) == file.nbytes


def test_a_killed_reader_holds_nothing_up(file):
    file.show("1")
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1])\n"
        "fcntl.flock(file, fcntl.LOCK_SH); print(flush=True); time.sleep(600)"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, file.path], stdout=subprocess.PIPE
    )
    reader.stdout.readline()
    assert not file.take_back()
    os.kill(reader.pid, signal.SIGKILL)
    reader.wait()
    assert file.take_back()


def test_no_room_is_an_error_before_anything_is_written(tmp_path):
    words = (
        rf"takes 4503599\.63 GB at {tmp_path}/.*, where .* GB are free; .*--shm-size"
    )
    with pytest.raises(OSError, match=words):
        WeightFile(tmp_path, {"a": torch.Size([1 << 50])}, torch.float32)
    assert list(tmp_path.iterdir()) == []
