"""Checkpoints of which it can be told whether they are whole.

Tune copies a checkpoint file by file. A manifest with the size and checksum of each is
written after the last one: what lacks it, or does not match it, was cut off by a full
disk or a kill, or has been damaged since, and nobody goes on from it.

A run that is being stopped asks its trials to save at once, not at the end of an
iteration that may take long; see `rllib_llm_async.cli.interruption`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.tune.result import (
    EPISODES_TOTAL,
    TIME_TOTAL_S,
    TIMESTEPS_TOTAL,
    TRAINING_ITERATION,
)

from rllib_llm_async.monitoring.owned_folders import OwnedFolder
from rllib_llm_async.monitoring.status_board import Wish

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

#: File of a checkpoint that says what belongs to it.
MANIFEST = "manifest.json"
#: What Tune wants to know of the iteration that a trial goes on from.
_METRICS = (TRAINING_ITERATION, TIME_TOTAL_S, TIMESTEPS_TOTAL, EPISODES_TOTAL)
_CHUNK_BYTES = 1 << 24


def save_whole(algorithm: Algorithm, save: Callable[[str | None], Any]) -> Any:
    """Saves a trial of Tune: a whole checkpoint, or none and a notice why.

    Args:
        algorithm: Runs under Tune.
        save: `Trainable.save`.

    Returns:
        Tune's training result; its checkpoint is None if a disk was full or failed.
        Tune then goes on, and saves again when the next one is due.
    """
    from ray.train._internal.session import _TrainingResult

    storage = algorithm._storage
    index = storage.current_checkpoint_index
    try:
        with OwnedFolder("checkpoint") as directory:
            result = save(directory)
            manifest = {
                "metrics": {key: result.metrics.get(key) for key in _METRICS},
                "files": _describe(Path(directory)),
            }
            path = f"{result.checkpoint.path}/{MANIFEST}"
            with result.checkpoint.filesystem.open_output_stream(path) as stream:
                stream.write(json.dumps(manifest).encode())
            return result
    except OSError as error:
        reason = _reason(error, [tempfile.gettempdir(), storage.trial_fs_path])
    if algorithm._status_board is not None:
        algorithm._status_board.notify.remote(
            storage.trial_dir_name,
            f"no checkpoint after iteration {algorithm.iteration}: {reason}; the run "
            "goes on and tries again when the next one is due",
        )
    if storage.current_checkpoint_index != index:
        with contextlib.suppress(OSError):  # none was begun
            storage.storage_filesystem.delete_dir(storage.checkpoint_fs_path)
        storage.current_checkpoint_index = index  # as Tune's own count
    return _TrainingResult(checkpoint=None, metrics={})


def answer_wish(algorithm: Algorithm) -> None:
    """Does what the command that runs this trial wants of it, if it wants something.

    Called wherever a trial waits for episodes: what it holds then is what it held
    after the last iteration, and may be saved.

    Raises:
        RuntimeError: To leave the iteration, once nobody waits for its result.
    """
    board, storage = algorithm._status_board, algorithm._storage
    if board is None or storage is None:
        return
    wish = ray.get(board.wish.remote(storage.trial_dir_name))
    if wish is Wish.SAVE:
        algorithm.save()
        ray.get(board.fulfil.remote(storage.trial_dir_name))
    elif wish is Wish.END:
        raise RuntimeError("the command that runs this trial was stopped")


def read_metrics(checkpoint: Path) -> dict[str, Any]:
    """The iteration and times of a checkpoint.

    Raises:
        ValueError: If its manifest is not there or cannot be read.
    """
    return _read_manifest(checkpoint)["metrics"]


def check_whole(checkpoint: Path) -> None:
    """Compares the files of a checkpoint with its manifest.

    Raises:
        ValueError: Names the first file that is missing or differs.
    """
    expected = _read_manifest(checkpoint)["files"]
    for name, (size, checksum) in expected.items():
        file = checkpoint / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{name} has {file.stat().st_size} of {size} bytes")
        if _checksum(file) != checksum:
            raise ValueError(f"the content of {name} has changed")


def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        return {key: dict(manifest[key]) for key in ("metrics", "files")}
    except OSError:
        raise ValueError("it was not written to its end") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{MANIFEST} cannot be read") from None


def _describe(directory: Path) -> dict[str, tuple[int, int]]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # `crc32` lets others run
        checksums = pool.map(_checksum, files)
        return {
            file.relative_to(directory).as_posix(): (file.stat().st_size, checksum)
            for file, checksum in zip(files, checksums, strict=True)
        }


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _reason(error: OSError, directories: list[str]) -> str:
    # One that a learner's actor raised carries the original.
    number = getattr(getattr(error, "cause", error), "errno", None)
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(number) if number else str(error).strip().splitlines()[-1]
    free = {d: shutil.disk_usage(d).free for d in directories if os.path.isdir(d)}
    fullest = min(free, key=free.__getitem__)
    return f"{os.strerror(number)}, {free[fullest] >> 20} MB are free in {fullest}"
