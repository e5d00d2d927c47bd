"""What the proxies between mu_old and pi_theta share: they need no pass of their own.

Such a proxy repairs nothing, it is here to be compared with: in log space
log r_d = (1 - alpha) log r and log r_s = alpha log r, so that mask and clip are two
bounds on the one total ratio.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.core.proximal import interpolate_logp, staleness_alpha
from rllib_llm_async.old_logprobs.base import OldLogprobSource


class InterpolatedSource(OldLogprobSource):
    """pi_old between mu_old (alpha = 1) and pi_theta (alpha = 0).

    alpha is ``prox_alpha``, or, with ``prox_alpha: staleness``, 1/d for a token that
    is d versions old and 0 for one that is not stale (A-3PO, arXiv 2512.06547).
    """

    needs_pass = False
    reads = frozenset({"prox_alpha"})
    space: ClassVar[str]

    def at_step(
        self, batch: Mapping[str, Tensor], logp: Tensor, version: int
    ) -> Tensor:
        alpha = self.settings.prox_alpha
        return interpolate_logp(
            batch[columns.BEHAVIOR_LOGP],
            logp.detach(),
            staleness_alpha(batch[columns.VERSIONS], version - 1, version)
            if isinstance(alpha, str)
            else alpha,
            space=self.space,
        )

    def old_logp(self, batch, forward, version):
        """What it is before the first step on the batch."""
        return self.at_step(batch, forward(batch, None), version)

    @classmethod
    def config_warnings(cls, config):
        if config.prox_alpha == 0:
            yield (
                f"{cls.name} with prox_alpha 0 makes r_s 1 for every token: the clip "
                "never acts; set prox_alpha above 0"
            )
        if config.prox_alpha == "staleness" and config.max_staleness == 0:
            yield (
                f"{cls.name} with prox_alpha staleness and max_staleness 0 makes r_s 1 "
                "for every token: the clip never acts; set prox_alpha to a number"
            )
        if config.prox_alpha == 1:
            yield from warnings_of_one_ratio(cls.name)


def warnings_of_one_ratio(name: str) -> Iterator[str]:
    """What is said of a source whose pi_old is mu_old."""
    yield (
        f"with {name} pi_old is mu_old: r_d is 1, neither eps_ti nor is_cap does "
        "anything, and the clip bounds discrepancy and staleness together; choose "
        "another old_logprob_source to tell them apart"
    )
