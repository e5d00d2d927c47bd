"""Whether a version that was sent to an engine is the one that it now samples with.

Three questions, because no answer holds everywhere. Are the bits of the engine's
parameters those of the trainer (`WeightLayout`)? Do its matrix products use these
bits, or a packed copy of older ones (`worker_weights.stale_linears`)? Both decide at
once and in every dtype, on all that vLLM keeps as it came. And are the probabilities
right, as far as numerics allow? A step at a small learning rate is far below them in
bfloat16, so that this sees gross errors alone, but of every cause.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rllib_llm_async.engine.weight_layout import Fingerprints

logger = logging.getLogger(__name__)

#: Median of |log p_engine - log p_trainer| on the probe that the dtype explains.
PROBE_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
#: Names in a message; a file of a former version makes all tensors differ.
NAMES_SHOWN = 4


@dataclass(frozen=True)
class ExpectedArrival:
    """What a version looks like at the trainer.

    ``fingerprints`` of the published tensors in the engine's dtype, by their names;
    ``probe_logp`` float32 ``[tokens - 1]``: log pi at temperature 1 of each of the
    ``probe_tokens`` but the first, given those before.
    """

    fingerprints: Fingerprints
    probe_tokens: list[int]
    probe_logp: np.ndarray


class Layout(Protocol):
    """Where an engine keeps what is published, see `WeightLayout`."""

    @property
    def not_comparable(self) -> Sequence[str]: ...

    def num_compared(self, published: Fingerprints) -> int: ...

    def not_published(self, published: Fingerprints) -> list[str]: ...

    def differences(
        self, published: Fingerprints, ranks: Sequence[Fingerprints]
    ) -> list[str]: ...


class ArrivalCheck:
    """Compares each version on one engine with what the trainer says of it.

    Args:
        dtype: Of the engine, without "torch.".
        layout: Where the engine keeps the published tensors.
        inexact_linears: Layers in which a product with a unit vector is not a column
            of the weights even when all is well.
    """

    def __init__(
        self, dtype: str, layout: Layout, inexact_linears: Sequence[str]
    ) -> None:
        self._layout = layout
        self._inexact_linears = frozenset(inexact_linears)
        self._tolerance = PROBE_TOLERANCE[dtype]
        self._last_arrival: tuple[int, Fingerprints] | None = None
        self._has_warned = False

    def wrong_bits(
        self,
        version: int,
        expected: ExpectedArrival,
        ranks: Sequence[Fingerprints],
        stale_linears: Sequence[str],
    ) -> str | None:
        """What differs between engine and trainer, in words; None if nothing does.

        Args:
            version: What has been sent.
            expected: How the trainer describes it.
            ranks: For each rank of the engine the fingerprints of its parameters.
            stale_linears: Layers that compute with something else than these.
        """
        self._warn_once(expected)
        published = expected.fingerprints
        differing = self._layout.differences(published, ranks)
        stale = sorted({*stale_linears} - self._inexact_linears)
        if not differing and stale:
            return (
                "layers that compute with something else than their parameters, such "
                f"as a packed copy of older ones: {_shown(stale)}"
            )
        if not differing:
            self._last_arrival = version, published
            return None
        still = ""
        if self._last_arrival is not None:
            last_version, last = self._last_arrival
            if not set(differing) & set(self._layout.differences(last, ranks)):
                still = f", which are still those of version {last_version}"
        return (
            f"{len(differing)} of {self._layout.num_compared(published)} parameters "
            f"have other bits than the trainer's{still} ({_shown(differing)})"
        )

    def wrong_numerics(self, expected: ExpectedArrival, logp: np.ndarray) -> str | None:
        """As `wrong_bits`, from the engine's log-probabilities of the probe.

        Args:
            expected: How the trainer describes the version.
            logp: float32 ``[tokens - 1]``, as ``expected.probe_logp``.
        """
        error = probe_error(expected, logp)
        if error <= self._tolerance:  # not so for NaN either
            return None
        return (
            f"engine and trainer differ by {error:.3g} nats on the probe prompt, "
            f"{self._tolerance} allowed"
        )

    def _warn_once(self, expected: ExpectedArrival) -> None:
        if self._has_warned:
            return
        self._has_warned = True
        unchecked = [
            *self._layout.not_comparable,
            *self._layout.not_published(expected.fingerprints),
            *self._inexact_linears,
        ]
        if unchecked:
            logger.warning(
                "%d parameters of the engine cannot be compared with the trainer's bit "
                "by bit (%s): vLLM keeps them in a form of its own, or the checkpoint "
                "names them otherwise; that they arrive is seen on the probe prompt "
                "alone, after larger changes",
                len(unchecked),
                _shown(unchecked),
            )


def probe_error(expected: ExpectedArrival, logp: np.ndarray) -> float:
    """Median absolute difference of engine and trainer on the probe, in nats.

    Not the largest one: an expert chosen otherwise at a near tie, which no weight
    explains, moves single tokens by much.
    """
    return float(np.median(np.abs(logp - expected.probe_logp)))


def _shown(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
