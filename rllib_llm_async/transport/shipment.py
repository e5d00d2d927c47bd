"""What a learner tells of a version that lies ready: where, and how it differs."""

from __future__ import annotations

from dataclasses import dataclass


class SupersededError(Exception):
    """A version is gone from where it was: a newer one takes its place, or will."""


@dataclass(frozen=True)
class Difference:
    """A file beside the weights with what turns one publication into the next sent.

    ``since`` and ``serial`` number publications, see `PublishedWeights`.
    """

    since: int
    serial: int
    path: str
    nbytes: int


@dataclass(frozen=True)
class Shipment:
    """A version that lies ready in the shared memory of a learner's node.

    ``source`` is different for every `Outbox`. The file at ``path`` is a safetensors
    file of ``nbytes``, its numbers start at ``start`` and add up to ``checksum``, see
    `differences.checksum`. ``differences`` are in order, each from where the one before
    ends, and count its bits as numbers of ``dtype`` (without "torch.").
    """

    source: str
    serial: int
    node_id: str
    path: str
    nbytes: int
    start: int
    dtype: str
    checksum: int
    differences: tuple[Difference, ...] = ()

    def since(self, serial: int) -> tuple[Difference, ...] | None:
        """What leads from a publication to this one; None if not all of it is there."""
        for number, difference in enumerate(self.differences):
            if difference.since == serial:
                return self.differences[number:]
        return None
