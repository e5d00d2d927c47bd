"""The sources of one Learner: the one it trains with, and those compared with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rllib_llm_async import result_keys
from rllib_llm_async.core.collectives import sum_over_learners
from rllib_llm_async.old_logprobs.auto import Auto
from rllib_llm_async.old_logprobs.base import (
    OldLogprobSource,
    SourceSettings,
    make_source,
)
from rllib_llm_async.old_logprobs.comparison import SourceComparison


class SourcesInUse:
    """Shows every source what it has to see, and keeps their state together.

    Args:
        name: Of the source to train with.
        compared: Names of further sources.
        settings: The run's settings.

    Attributes:
        main: The source to train with.
        comparison: None where no source is compared.
    """

    def __init__(
        self, name: str, compared: Sequence[str], settings: SourceSettings
    ) -> None:
        self.main: OldLogprobSource = make_source(name, settings)
        self.comparison = (
            SourceComparison(self.main, compared, settings) if compared else None
        )

    def __iter__(self) -> Iterator[OldLogprobSource]:
        yield self.main
        if self.comparison is not None:
            yield from self.comparison.shadows.values()

    def on_publish(self, version: int, named_parameters: Mapping[str, Tensor]) -> None:
        """Shows all of them a published version, see `OldLogprobSource.on_publish`."""
        for source in self:
            source.on_publish(version, named_parameters)

    def see_update(
        self,
        mask_share: float,
        compared: Mapping[str, float],
        staleness_width: float,
        device: torch.device,
    ) -> None:
        """Shows them what an update saw; alike on all learners, which call it together.

        Args:
            mask_share: Of all learners' tokens, what the mask of ``main`` kept.
            compared: What `SourceComparison.measure` gave.
            staleness_width: Of the staleness window of all learners, in versions.
            device: Of the learner.
        """
        shares = {self.main: mask_share}
        if self.comparison is not None:
            for name, source in self.comparison.shadows.items():
                key = result_keys.compared(name, result_keys.COMPARED_MASK_SHARE)
                shares[source] = compared[key]
        for source, share in shares.items():
            if counts := source.counts():
                # float64: these are counts of tokens and bytes.
                own = torch.tensor(
                    [*counts.values()], dtype=torch.float64, device=device
                )
                totals = sum_over_learners(own).tolist()
                source.agree(dict(zip(counts, totals, strict=True)))
            source.observe(mask_share=share, staleness_width=staleness_width)

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: copies, in host memory."""
        return {
            "name": self.main.name,
            "main": self.main.get_state(),
            "compared": self.comparison.get_state() if self.comparison else {},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned into sources of today's weights.

        A source may have been trained with then and be compared now, or the reverse;
        one that was not in use starts from these weights.
        """
        states = {state["name"]: state["main"], **state["compared"]}
        if Auto.name in states:
            states = {**Auto.states_of_parts(states[Auto.name]), **states}
        for source in self:
            source.take_over(states)
