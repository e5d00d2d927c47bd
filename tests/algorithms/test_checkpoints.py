"""A checkpoint is whole, or there is none and a notice says why."""

import errno
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint

from rllib_llm_async.algorithms.async_decoupled_ppo import checkpoints
from rllib_llm_async.algorithms.async_decoupled_ppo.checkpoints import (
    answer_wish,
    check_whole,
    read_metrics,
    save_whole,
)
from rllib_llm_async.monitoring.status_board import StatusBoard, Wish


@pytest.fixture
def board():
    return StatusBoard()


@pytest.fixture
def algorithm(tmp_path, board, monkeypatch):
    """After iteration 7, as far as saving is concerned."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(checkpoints.ray, "get", lambda value: value)

    def handle(name):
        return SimpleNamespace(remote=getattr(board, name))

    names = ("notify", "wish", "fulfil")
    return SimpleNamespace(
        iteration=7,
        _status_board=SimpleNamespace(**{name: handle(name) for name in names}),
        _storage=StorageContext(str(tmp_path), "run", trial_dir_name="trial"),
    )


def tune_saves(algorithm, failure=None):
    """`Trainable.save`, as far as files go; ends with ``failure`` half way."""

    def save(directory):
        Path(directory, "learner").mkdir()
        for name in ("learner/weights", "algorithm_state.pkl"):
            Path(directory, name).write_bytes(os.urandom(1000))
        storage = algorithm._storage
        storage._update_checkpoint_index({})
        if failure is not None:
            half = Path(storage.checkpoint_fs_path, "learner")
            half.mkdir(parents=True)
            (half / "weights").write_bytes(bytes(300))
            raise failure
        saved = storage.persist_current_checkpoint(Checkpoint(directory))
        return _TrainingResult(saved, {"training_iteration": 7, "time_total_s": 60.5})

    return save


def test_whole(algorithm, board, tmp_path):
    result = save_whole(algorithm, tune_saves(algorithm))
    path = Path(result.checkpoint.path)
    assert path == tmp_path / "run" / "trial" / "checkpoint_000000"
    check_whole(path)
    assert read_metrics(path)["training_iteration"] == 7
    assert read_metrics(path)["time_total_s"] == 60.5
    assert os.listdir(tmp_path) == ["run"]  # no temporary files are left
    assert board.take_notices() == []


class LearnerError(OSError):
    """As Ray raises it here when an actor raised an OSError."""

    def __init__(self):
        super().__init__("ray::Learner.save_to_path()\nOSError: [Errno 28] No space")
        self.cause = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (OSError(errno.ENOSPC, "Error writing bytes to file"), "No space left on dev"),
        (OSError(errno.EDQUOT, "write"), "Disk quota exceeded"),
        (OSError(errno.EIO, "write"), "Input/output error; the run goes on"),
        (LearnerError(), "No space left on device"),
    ],
)
def test_a_full_disk(algorithm, board, tmp_path, failure, words):
    save_whole(algorithm, tune_saves(algorithm))
    result = save_whole(algorithm, tune_saves(algorithm, failure))
    assert result.checkpoint is None
    trial = tmp_path / "run" / "trial"
    assert os.listdir(trial) == ["checkpoint_000000"]
    check_whole(trial / "checkpoint_000000")
    ((of, notice),) = board.take_notices()
    assert of == "trial" and notice.startswith("no checkpoint after iteration 7: ")
    assert words in notice and "\n" not in notice
    # The next one has the number that this one would have had.
    result = save_whole(algorithm, tune_saves(algorithm))
    assert result.checkpoint.path.endswith("checkpoint_000001")
    assert os.listdir(tmp_path) == ["run"]


def test_other_failures_are_not_hidden(algorithm):
    with pytest.raises(RuntimeError, match="learner died"):
        save_whole(algorithm, tune_saves(algorithm, RuntimeError("learner died")))


def test_wishes(algorithm, board):
    saves = []
    algorithm.save = lambda: saves.append(board.fulfilled())
    answer_wish(algorithm)
    assert saves == []
    board.want(Wish.SAVE)
    for _ in range(3):
        answer_wish(algorithm)
    assert saves == [set()] and board.fulfilled() == {"trial"}
    board.want(Wish.END)
    with pytest.raises(RuntimeError, match="was stopped"):
        answer_wish(algorithm)


def test_outside_of_the_command_nobody_wants_anything(algorithm):
    algorithm._status_board = None
    answer_wish(algorithm)
