"""Reads the weights of a checkpoint that several learners wrote, as data.

Each learner wrote safetensors files: a JSON header and numbers. The header says where
in the whole tensor each part belongs (`torch.distributed.checkpoint`'s
``DCP_SHARDING_INFO``). Nothing is unpickled, and what the parts do not fill is refused,
so that no more memory is taken than the files have.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

#: As written by `torch.sharded_checkpoint`.
_WEIGHTS = "weights/"


class _Part(NamedTuple):
    """Where a part of a tensor is, and where in the tensor it belongs."""

    file: Path
    key: str
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def read_weights(directory: Path) -> dict[str, np.ndarray]:
    """The whole weights by name, from the files of all learners.

    Raises:
        ValueError: If files are missing, damaged or no parts of weights; names where.
    """
    try:
        parts: dict[str, list[_Part]] = defaultdict(list)
        for file in sorted(directory.glob("*.safetensors")):
            for part in _parts(file):
                parts[part.key.removeprefix(_WEIGHTS)].append(part)
        if not parts:
            raise ValueError("no weights in it")
        return {name: _joined(name, of_name) for name, of_name in parts.items()}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{directory}: damaged, or not weights ({type(error).__name__}: {error})"
        ) from error


def _parts(file: Path) -> Iterator[_Part]:
    with safe_open(file, framework="np") as opened:
        said = json.loads((opened.metadata() or {})["DCP_SHARDING_INFO"])
        for key in opened.keys():  # noqa: SIM118  # not a mapping
            if key.startswith(_WEIGHTS):
                shape = tuple(opened.get_slice(key).get_shape())
                yield _Part(file, key, _offsets(said[key], len(shape)), shape)


def _offsets(said: Any, dims: int) -> tuple[int, ...]:
    offsets = tuple(said["saved_offsets"])
    if len(offsets) != dims or not all(type(n) is int and n >= 0 for n in offsets):
        raise ValueError(f"a part of {dims} dimensions at {offsets}")
    return offsets


def _joined(name: str, parts: list[_Part]) -> np.ndarray:
    ends = [np.add(part.offsets, part.shape) for part in parts if math.prod(part.shape)]
    shape = tuple(int(n) for n in np.max(ends, axis=0)) if ends else parts[0].shape
    filled = sum(math.prod(part.shape) for part in parts)
    if math.prod(shape) != filled:
        raise ValueError(
            f"{name} is {shape}, but its parts have {filled} elements: a learner's "
            "file is missing"
        )
    arrays = [_read(part) for part in parts]
    whole = np.zeros(shape, arrays[0].dtype)
    for part, array in zip(parts, arrays, strict=True):
        place = tuple(
            slice(start, start + length)
            for start, length in zip(part.offsets, part.shape, strict=True)
        )
        whole[place] = array
    return whole


def _read(part: _Part) -> np.ndarray:
    with safe_open(part.file, framework="np") as opened:
        return opened.get_tensor(part.key)
