"""Reads arrays from a pickle without running what else it says.

A pickle is a program: `pickle.load` calls whatever function it names. RLlib writes the
weights of a module as one, a mapping from names to NumPy arrays, which takes three
functions. Here these are three of our own, and any other is refused by name.
"""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a file that RLlib wrote, by name.

    Raises:
        ValueError: If the file cannot be read, is cut off or damaged, or holds anything
            but arrays of numbers; names the file and what is wrong.
    """
    try:
        with path.open("rb") as file:
            arrays = _Unpickler(_Bounded(file, path.stat().st_size)).load()
        return _checked(arrays)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(
            f"{path}: damaged, or not weights ({type(error).__name__}: {error})"
        ) from error


def _checked(arrays: Any) -> dict[str, np.ndarray]:
    if type(arrays) is not dict:
        raise ValueError(f"holds {type(arrays).__name__}, expected names of arrays")
    read = {}
    for name, array in arrays.items():
        array = array.array if isinstance(array, _Array) else array
        if not (isinstance(name, str) and isinstance(array, np.ndarray)):
            raise ValueError(f"{name!r} is no array")
        read[name] = array
    return read


class _Bounded:
    """A file of which no more is asked for than there is.

    A pickle says how long what comes next is, and gets that much memory first.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline

    def read(self, size: int) -> bytes:
        if size > self._size - self._file.tell():
            raise EOFError("cut off")
        return self._file.read(size)


class _DType:
    """Stands for ``numpy.dtype``: plain numbers of this machine's byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(code, str) or len(code) > 3 or code[:1] not in "biuf":
            raise ValueError(f"array of {code!r}, expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", "|") or state[2:5] != (None, None, None):
            raise ValueError(f"array of type {state!r}, expected plain numbers")


class _NDArray:
    """Stands for the class ``numpy.ndarray``, which is only ever named."""


class _Array:
    """Stands for ``numpy._core.multiarray._reconstruct``, filled in afterwards."""

    def __init__(self, cls: Any, shape: Any, code: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Stands for ``numpy._core.numeric._frombuffer``."""
    if not isinstance(data, bytes | bytearray):
        raise ValueError("array without its bytes")
    return np.frombuffer(data, dtype=dtype.dtype).reshape(shape, order=order)


_GLOBALS: dict[tuple[str, str], Any] = {
    # Not the real one: that has attributes, which a pickle could set.
    ("collections", "OrderedDict"): dict,
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _NDArray,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """The one in Python: the one in C takes gigabytes for a memo that is never used."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module}.{name}, not loaded") from None

    def load_build(self) -> None:
        stack = self.stack  # type: ignore[attr-defined]
        if not isinstance(stack[-2], _DType | _Array):
            raise pickle.UnpicklingError("sets the state of what has none")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        # That of `pickle` takes the memory first, and zeroes it.
        (length,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
