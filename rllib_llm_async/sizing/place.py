"""What lies where, in bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Part(NamedTuple):
    """One thing that takes memory."""

    what: str
    nbytes: float


@dataclass(frozen=True)
class Place:
    """A process' memory, or another place of which there is so much.

    Attributes:
        where: Its name.
        parts: What is there at the same time.
    """

    where: str
    parts: list[Part]

    @property
    def nbytes(self) -> float:
        """Of all parts."""
        return nbytes_of(self.parts)


def nbytes_of(things: Iterable[Tensor | Part]) -> float:
    """Of all of them together."""
    return sum(thing.nbytes for thing in things)
