"""The interface of a source of old log-probabilities, and the registry of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.settings.names import unknown

#: ``forward(batch, parameters) -> log pi [rows, length]`` without gradient;
#: ``parameters=None`` means the trainer's current weights.
Forward = Callable[[Mapping[str, Tensor], Mapping[str, Tensor] | None], Tensor]

#: Of one interruption, by `EPISODE_KEY`: positions in the episode and log pi_old.
Scores = Mapping[int, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class SourceSettings:
    """The settings of a run that sources read; meanings as in the config."""

    eps_ti: float
    prox_alpha: float | str
    ewma_decay: float | str
    ewma_reset_threshold: float
    max_staleness: int
    snapshot_memory_bytes: int | None = None
    missing_snapshot: str = "error"
    compute_dtype: str | None = None
    mask_level: str = "token"
    learner_sharding: str = "none"

    @classmethod
    def from_config(cls, config: Any) -> SourceSettings:
        """Reads them off an `AsyncDecoupledPPOConfig`."""
        values = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**{**values, "mask_level": config.mask_level or config.ratio_level})

    def mask_unit_ids(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The column of the units over which the Train-Infer mask forms r_d."""
        column = columns.UNIT_IDS[self.mask_level]
        return None if column is None else batch[column]


class OldLogprobSource(ABC):
    """One route to log pi_old.

    Args:
        settings: The run's settings.
    """

    name: ClassVar[str]
    #: Whether log pi_old is the one under the weights that sampled each token.
    is_exact: ClassVar[bool] = False
    #: Whether log pi_old comes with the episodes, scored by `OldLogitActor`.
    scores_elsewhere: ClassVar[bool] = False
    #: Whether `old_logp` is asked before the first step on a batch. False where log
    #: pi_old follows from the training pass itself, see `at_step`.
    needs_pass: ClassVar[bool] = True
    #: Whether generation stops before each publication, so that `outgoing` can score
    #: what was sampled under the version that goes.
    stops_generation: ClassVar[bool] = False
    #: Settings that have an effect through this source alone.
    reads: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: SourceSettings) -> None:
        self.settings = settings

    def on_publish(self, version: int, named_parameters: Mapping[str, Tensor]) -> None:
        """Sees the trainable weights of each published version.

        Called with the initial version first, then once per version, after at least
        one real optimizer step; not on a skipped step, not on accumulation.
        """

    @abstractmethod
    def old_logp(
        self, batch: Mapping[str, Tensor], forward: Forward, version: int
    ) -> Tensor:
        """Returns log pi_old, float32 ``[rows, length]``, before the first step.

        Args:
            batch: Row-packed columns, see `rllib_llm_async.batch.columns`.
            forward: Log-probabilities of rows under given or current weights.
            version: The trainer's current version.

        NaN marks a token whose log pi_old is lost; its episode is dropped and counted.
        """

    def at_step(
        self, batch: Mapping[str, Tensor], logp: Tensor, version: int
    ) -> Tensor:
        """What stands for log pi_old in the loss of one optimizer step.

        Args:
            batch: Rows of the step, with what `old_logp` gave in `OLD_LOGP`.
            logp: log pi_theta of the training pass, same shape.
            version: The trainer's current version.
        """
        return batch[columns.OLD_LOGP]

    def observe(self, *, mask_share: float, staleness_width: float) -> None:
        """Sees, after each update, the share of tokens that the Train-Infer mask kept
        and the width of the staleness window in versions; alike on all learners."""

    def counts(self) -> dict[str, float]:
        """Sums over this learner's share of the last batch, always the same keys.

        They are added up over all learners and come back in `agree`, so that whatever
        a source decides from them it decides alike everywhere.
        """
        return {}

    def agree(self, totals: Mapping[str, float]) -> None:
        """Sees, after each update, the `counts` of all learners."""

    @property
    def outgoing(self) -> Mapping[str, Tensor]:
        """The weights as they were published last, if it `stops_generation`."""
        raise NotImplementedError(f"{self.name} does not score outgoing versions")

    def add_scores(self, version: int, scores: Scores) -> None:
        """Takes what one learner scored under `outgoing`, if it `stops_generation`."""
        raise NotImplementedError(f"{self.name} does not score outgoing versions")

    def metrics(self) -> dict[str, float | str]:
        """Figures (or words) of the last update, for the results."""
        return {}

    @property
    def nbytes(self) -> int:
        """Bytes of the weights it holds."""
        return 0

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint has to hold: copies, in host memory."""
        return {}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what `get_state` returned."""

    def take_over(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Goes on from what a checkpoint holds of its run's sources, by their names.

        One that was not in use starts from the weights that it was shown first.
        """
        if self.name in states:
            self.set_state(states[self.name])

    @classmethod
    def config_warnings(cls, config: Any) -> Iterator[str]:
        """Where numbers would not mean what one thinks, one sentence each.

        What comes before the first colon is the situation, said once in a run.
        """
        if cls.is_exact and config.max_staleness == 0 and takes_one_step(config):
            yield (
                "r_s is 1 for every token and the clip never acts: with max_staleness "
                "0 pi_old is that of the weights of the only optimizer step; set "
                "minibatch_size to half of a learner's episodes or less"
            )

    @classmethod
    def was_exact(cls, results: Mapping[str, float]) -> bool:
        """Whether log pi_old was exact in the update of these learner's results."""
        return cls.is_exact

    @classmethod
    def result_warnings(
        cls, config: Any, results: Mapping[str, float]
    ) -> Iterator[str]:
        """The same, from the learner's results of one update."""
        yield from ()


def takes_one_step(config: Any) -> bool:
    """Whether an update is one optimizer step."""
    return config.num_epochs * config.steps_per_epoch(config.minibatch_size) == 1


_SOURCES: dict[str, type[OldLogprobSource]] = {}


def register_source(cls: type[OldLogprobSource]) -> type[OldLogprobSource]:
    """Class decorator: makes a source available under its ``name``, in all of a job.

    Raises:
        ValueError: If the name is taken.
    """
    if cls.name in _SOURCES:
        raise ValueError(f"old_logprob_source {cls.name!r} is registered already")
    _SOURCES[cls.name] = cls
    return cls


def source_names() -> list[str]:
    """Names that are registered in this process, sorted."""
    return sorted(_SOURCES)


def find_source(name: str) -> type[OldLogprobSource] | None:
    """The source of that name, registered in this process or by the job's driver.

    One of somebody's own goes to all processes of the job as soon as its driver looks
    it up, before any actor does. At its registration the rest of its module, which it
    may call, was not there yet.
    """
    from ray.tune import registry

    # Ray's keys are ASCII, and it has no category for what is none of its own.
    key = f"old_logprob_source {name!a}"
    cls = _SOURCES.get(name)
    if cls is None:
        known = registry.registry_contains_input(key)
        return registry.registry_get_input(key) if known else None
    if not cls.__module__.startswith(f"{__package__}."):
        registry.register_input(key, cls)
    return cls


def source_class(name: str) -> type[OldLogprobSource]:
    """The source of that name, see `find_source`.

    Raises:
        ValueError: If the name is unknown; lists the valid ones.
    """
    cls = find_source(name)
    if cls is None:
        raise ValueError(f"old_logprob_source: {unknown(name, source_names())}")
    return cls


def make_source(name: str, settings: SourceSettings) -> OldLogprobSource:
    """Builds the source of that name; raises as `source_class`."""
    return source_class(name)(settings)
