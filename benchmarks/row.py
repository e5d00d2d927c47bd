"""One line of the benchmark table."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass


def say(what: str) -> None:
    """Tells who waits what is being done now."""
    print(f"{what} ...", file=sys.stderr, flush=True)


class MissingPackageError(Exception):
    """A row needs a package that is not installed.

    Args:
        name: Of the package.
        remedy: What installs it.
    """

    def __init__(self, name: str, remedy: str) -> None:
        super().__init__(f"needs the package {name!r}: {remedy}")


@dataclass(frozen=True)
class Row:
    """``ratio`` is value / reference; both were measured in turns in one run."""

    name: str
    value: float
    unit: str
    reference: float
    ratio: float

    def json(self) -> str:
        return json.dumps(asdict(self))


def compare(
    name: str,
    unit: str,
    measure: Callable[[], float],
    measure_reference: Callable[[], float],
    repeats: int,
) -> Row:
    """Takes both figures in turns; reports medians, and the median of the ratios.

    A machine that others share drifts: a pair measured side by side drifts less.
    The first pair warms caches up and is thrown away.
    """
    pairs = [(measure(), measure_reference()) for _ in range(repeats + 1)][1:]
    return Row(
        name=name,
        value=statistics.median(value for value, _ in pairs),
        unit=unit,
        reference=statistics.median(reference for _, reference in pairs),
        ratio=statistics.median(value / reference for value, reference in pairs),
    )
