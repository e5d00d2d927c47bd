"""How far engine and trainer are apart under the same weights, in four figures."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

#: Share of fresh tokens that `suggested_eps_ti` keeps.
KEPT_SHARE = 0.999


class Discrepancy(NamedTuple):
    """Of |log r_d| over tokens: root mean square, mean, quantile, largest."""

    rms: float
    mean: float
    quantile: float
    largest: float
    num_tokens: int

    @property
    def suggested_eps_ti(self) -> float:
        """The bound within which `KEPT_SHARE` of the tokens lie, see there."""
        return suggested_eps_ti(self.quantile)


def discrepancy(log_r_d: Tensor) -> Discrepancy:
    """Summarises log r_d of tokens that are of the trainer's own version.

    The quantile is the least |log r_d| that `KEPT_SHARE` of the tokens do not exceed.

    Args:
        log_r_d: ``[tokens]``, at least one.

    Raises:
        ValueError: If there is none, or one is no number.
    """
    size = log_r_d.double().abs().flatten()
    if not len(size) or not size.isfinite().all():
        raise ValueError(f"log r_d of {len(size)} tokens: all have to be numbers")
    place = math.ceil(KEPT_SHARE * len(size))
    return Discrepancy(
        rms=float(size.square().mean().sqrt()),
        mean=float(size.mean()),
        quantile=float(size.kthvalue(place).values),
        largest=float(size.max()),
        num_tokens=len(size),
    )


def suggested_eps_ti(quantile: float) -> float:
    """eps_ti = exp(q), its excess over 1 rounded up to two digits.

    With q the quantile of |log r_d| at lag 0, the mask [1/eps_ti, eps_ti] keeps that
    share of fresh tokens: what it drops beyond is staleness, or a fault.

    Args:
        quantile: Of |log r_d|, 0 or more. The excess is 1e-6 at least; float32
            resolves no less.
    """
    excess = max(math.expm1(quantile), 1e-6)
    unit = 10.0 ** (math.floor(math.log10(excess)) - 1)
    return 1.0 + math.ceil(excess / unit * (1 - 1e-9)) * unit
