"""Further sources on the same batches: measured, never trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.batch import columns
from rllib_llm_async.core.collectives import sum_over_learners
from rllib_llm_async.core.comparison import comparison_figures, comparison_sums
from rllib_llm_async.old_logprobs.base import (
    Forward,
    OldLogprobSource,
    SourceSettings,
    make_source,
)


class SourceComparison:
    """Computes ``names`` beside the source in use and compares all with the exact one.

    Args:
        main: The source in use.
        names: The further sources.
        settings: The run's settings.

    One of all of them has to be exact.
    """

    def __init__(
        self, main: OldLogprobSource, names: Sequence[str], settings: SourceSettings
    ) -> None:
        self._settings = settings
        # What is only measured must not end the run: no snapshot, no comparison.
        of_shadows = replace(settings, missing_snapshot="drop")
        self.shadows = {
            name: make_source(name, of_shadows) for name in names if name != main.name
        }
        self._sources = {main.name: main, **self.shadows}
        self._exact_name = next(n for n, s in self._sources.items() if s.is_exact)

    def measure(
        self,
        batch: Mapping[str, Tensor],
        forward: Forward,
        version: int,
        main_old_logp: Tensor | None,
    ) -> dict[str, float]:
        """Compares all sources before the first step on a batch, on all learners'
        tokens; they have to call it together.

        Args:
            batch: Row-packed columns.
            forward: As in `OldLogprobSource.old_logp`.
            version: The trainer's current version.
            main_old_logp: What the source in use gave; None if it needs no pass.

        Returns:
            ``compare/<source>/...`` of `compare_old_logp`; for the shadows
            ``compare/<source>/seconds``, what the source would cost if it were in use,
            and ``.../nbytes``, what it holds; ``compare_one_pass_seconds``, a pass over
            the batch; ``compare_seconds``, what the comparison cost.
        """
        start = time.monotonic()
        logp = forward(batch, None)
        one_pass = time.monotonic() - start
        seconds = 0.0

        def cached_forward(rows, parameters):
            nonlocal seconds
            if parameters is None and rows[columns.TOKENS] is batch[columns.TOKENS]:
                seconds += one_pass
                return logp
            return forward(rows, parameters)

        old_logp: dict[str, Tensor] = {}
        metrics = {result_keys.COMPARE_ONE_PASS_SECONDS: one_pass}
        for name, source in self._sources.items():
            if name not in self.shadows and main_old_logp is not None:
                old_logp[name] = main_old_logp
                continue
            began, seconds = time.monotonic(), 0.0
            old_logp[name] = (
                source.old_logp(batch, cached_forward, version)
                if source.needs_pass
                else source.at_step(batch, logp, version)
            )
            elapsed = seconds + time.monotonic() - began
            metrics[result_keys.compared(name, result_keys.COMPARED_SECONDS)] = elapsed
            nbytes = result_keys.compared(name, result_keys.COMPARED_NBYTES)
            metrics[nbytes] = source.nbytes
        for name, values in old_logp.items():
            sums = comparison_sums(
                values,
                old_logp[self._exact_name],
                logp,
                batch[columns.BEHAVIOR_LOGP],
                batch[columns.LOSS_MASK],
                eps_ti=self._settings.eps_ti,
                mask_unit_ids=self._settings.mask_unit_ids(batch),
            )
            metrics |= {
                result_keys.compared(name, key): float(value)
                for key, value in comparison_figures(sum_over_learners(sums)).items()
            }
        metrics[result_keys.COMPARE_SECONDS] = time.monotonic() - start
        return metrics

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {name: source.get_state() for name, source in self.shadows.items()}
