"""Where an engine keeps the tensors of a checkpoint, and whether they are there.

vLLM stacks, pads, shards, packs and renames tensors by rules of each model, so that a
published tensor and an engine's parameter cannot simply be compared. `WeightLayout`
learns once, from the checkpoint that vLLM has just loaded by itself, which sums of
fingerprints are equal on both sides; after every update these have to be equal again.
What is not equal even then (quantised or otherwise transformed) is left out, by name.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rllib_llm_async.core.fingerprint import Fingerprint, add_fingerprints

Fingerprints = Mapping[str, Fingerprint]


@dataclass(frozen=True)
class Part:
    """Checkpoint tensors and the parameters of the engine that hold them.

    ``twin`` is published where ``published`` is not: the other name of a tied tensor.
    Either each rank that has the parameters holds all of it, or all ranks together
    do; where they split or permute rows, ``Fingerprint.rows`` says nothing.
    """

    label: str
    published: tuple[str, ...]
    engine: tuple[str, ...]
    twin: str | None = None
    whole_on_each_rank: bool = True
    keeps_rows: bool = True

    def expected(self, published: Fingerprints) -> Fingerprint | None:
        """The part's fingerprint at the trainer; None if it is not published."""
        names = self.published
        if self.twin is not None and not any(name in published for name in names):
            names = (self.twin,)
        if not names or any(name not in published for name in names):
            return None
        return add_fingerprints(published[name] for name in names)

    def is_held(self, expected: Fingerprint, ranks: Sequence[Fingerprints]) -> bool:
        """Whether the engine's parameters have these bits."""
        held = [
            add_fingerprints(rank[name] for name in self.engine if name in rank)
            for rank in ranks
            if any(name in rank for name in self.engine)
        ]
        if not self.whole_on_each_rank:
            held = [add_fingerprints(held)]
        if not self.keeps_rows:
            return {one.elements for one in held} == {expected.elements}
        return set(held) == {expected}


class WeightLayout:
    """Which parts of a model can be compared bit by bit, and how.

    Args:
        checkpoint: Fingerprint of each tensor of a checkpoint, in the engine's dtype.
        homes: The parameter that a tensor belongs to, as far as vLLM says.
        ranks: For each rank of the engine the fingerprints of its parameters, with
            that checkpoint loaded.
    """

    def __init__(
        self,
        checkpoint: Fingerprints,
        homes: Mapping[str, str],
        ranks: Sequence[Fingerprints],
    ) -> None:
        self.parts: list[Part] = []
        self.not_comparable: list[str] = []
        self._known = {name for rank in ranks for name in rank}
        for part in _parts(checkpoint, homes, ranks):
            comparable = _comparable(part, checkpoint, ranks)
            if comparable is not None:
                self.parts.append(comparable)
            else:
                self.not_comparable += part.engine

    def num_compared(self, published: Fingerprints) -> int:
        """Of how many parts `differences` names some."""
        return len(self.parts)

    def not_published(self, published: Fingerprints) -> list[str]:
        """Parameters that the trainer says nothing about."""
        return [
            name
            for part in self.parts
            if part.expected(published) is None
            for name in part.engine
        ]

    def differences(
        self, published: Fingerprints, ranks: Sequence[Fingerprints]
    ) -> list[str]:
        """Labels of the parts whose bits at the engine are not the published ones."""
        differing = [
            part.label
            for part in self.parts
            if (expected := part.expected(published)) is not None
            and not part.is_held(expected, ranks)
        ]
        # A tied head that an update has untied is a parameter of its own since then.
        copies = set(published.values())
        return differing + [
            name
            for rank in ranks
            for name, held in rank.items()
            if name not in self._known and _layer(name) is None and held not in copies
        ]


def _parts(
    checkpoint: Fingerprints, homes: Mapping[str, str], ranks: Sequence[Fingerprints]
) -> list[Part]:
    """Pairs tensors with parameters by name; what is left, layer by layer."""
    engine: dict[str, Fingerprint] = {}
    for rank in ranks:
        engine = {**rank, **engine}
    published_in, held_in = defaultdict(list), defaultdict(list)
    for name in checkpoint:
        home = homes.get(name, name)
        published_in[home if home in engine else _place(home)].append(name)
    for name in engine:
        held_in[name if name in published_in else _place(name)].append(name)
    return [
        Part(
            label,
            tuple(published_in.get(label, [label])),
            tuple(names),
            twin=_twin(label, engine.get(label), checkpoint),
        )
        for label, names in held_in.items()
    ]


def _comparable(
    part: Part, checkpoint: Fingerprints, ranks: Sequence[Fingerprints]
) -> Part | None:
    """The part with the strictest comparison that holds for the loaded checkpoint."""
    expected = part.expected(checkpoint)
    if expected is None or not any(expected):  # zeros say nothing about a layout
        return None
    for keeps_rows, whole in itertools.product((True, False), repeat=2):
        candidate = replace(part, keeps_rows=keeps_rows, whole_on_each_rank=whole)
        if candidate.is_held(expected, ranks):
            return candidate
    return None


def _twin(name: str, held: Fingerprint | None, checkpoint: Fingerprints) -> str | None:
    """Another tensor of the checkpoint with these bits, both outside of layers."""
    if _layer(name) is not None:
        return None
    for other, bits in checkpoint.items():
        if bits == held and other != name and _layer(other) is None:
            return other
    return None


def _place(name: str) -> str:
    """What a tensor without a counterpart of its name is summed up in."""
    owner, experts, _ = name.partition(".experts.")
    layer = _layer(name)
    if experts:
        return f"{owner}.experts"
    return name if layer is None else f"layer {layer}"


def _layer(name: str) -> str | None:
    """The first number in a name; None outside of layers."""
    return next((piece for piece in name.split(".") if piece.isdigit()), None)
