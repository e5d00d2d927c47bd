"""What changed between two versions, as bytes: `core.deltas` piece by piece.

A version is one flat tensor, all its bits as numbers of one dtype. Each piece of it
travels as its changed elements, or whole where that is smaller (float32, large steps),
or not at all where nothing changed. A piece is a length and safetensors: nothing is
unpickled, and neither side holds more than a few pieces at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from safetensors.torch import load, save
from torch import Tensor

from rllib_llm_async.core.deltas import Delta, apply_delta_, tensor_delta

#: Elements of a piece: small beside a model, large beside a call; a multiple of the
#: blocks of a `Delta`.
PIECE = 1 << 22
_LENGTH = 8


def encode(
    new: Tensor, old: Tensor, check: Callable[[], None] = lambda: None
) -> Iterator[bytes]:
    """Yields what turns ``old`` into ``new``, bit for bit.

    Args:
        new: ``[elements]``, on the CPU.
        old: As ``new``.
        check: Called before every piece; what it raises ends the work.
    """
    pieces = zip(new.split(PIECE), old.split(PIECE), strict=True)
    for number, (piece, before) in enumerate(pieces):
        check()
        delta = tensor_delta(of=piece, against=before)
        if delta is None:
            said = save({f"{number}.whole": piece})
        elif len(delta.values):
            said = save(
                {
                    f"{number}.counts": delta.counts,
                    f"{number}.offsets": delta.offsets,
                    f"{number}.values": delta.values,
                }
            )
        else:
            continue
        yield len(said).to_bytes(_LENGTH, "little") + said


def apply_(flat: Tensor, encoded: Iterable[bytes | memoryview]) -> None:
    """Turns ``flat``, in place, into what the difference was made of.

    Args:
        flat: ``[elements]``, what it was made against.
        encoded: What `encode` yielded, cut into parts anywhere.
    """
    pieces = flat.split(PIECE)
    come = bytearray()
    for part in encoded:
        come += part
        while len(come) >= _LENGTH:
            end = _LENGTH + int.from_bytes(come[:_LENGTH], "little")
            if len(come) < end:
                break
            _apply_piece_(pieces, load(bytes(come[_LENGTH:end])))
            del come[:end]


def _apply_piece_(pieces: tuple[Tensor, ...], said: dict[str, Tensor]) -> None:
    number, _, kind = next(iter(said)).partition(".")
    piece = pieces[int(number)]
    if kind == "whole":
        piece.copy_(said[f"{number}.whole"])
    else:
        apply_delta_(
            piece,
            Delta(
                *(said[f"{number}.{part}"] for part in ("counts", "offsets", "values"))
            ),
        )


def checksum(flat: Tensor, check: Callable[[], None] = lambda: None) -> int:
    """Sum of all bits, as integers of 64, modulo 2^64.

    Fast, and enough for a copy that missed a difference or got one twice; what an
    engine makes of it is checked with `core.fingerprint`.
    """
    total = 0
    for piece in flat.split(PIECE):
        check()
        piece_bytes = piece.view(torch.uint8)
        tail = len(piece_bytes) % 8
        whole = piece_bytes[: len(piece_bytes) - tail].view(torch.int64)
        total += int(whole.sum()) + int(piece_bytes[len(piece_bytes) - tail :].sum())
    return total % (1 << 64)
