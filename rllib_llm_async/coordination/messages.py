"""What env runners, learners and the coordinator tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rllib_llm_async.coordination.staleness_gate import Ticket

if TYPE_CHECKING:
    import ray

    from rllib_llm_async.engine.arrival_check import ExpectedArrival
    from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome
    from rllib_llm_async.transport.device_outbox import DeviceShipment
    from rllib_llm_async.transport.shipment import Shipment


@dataclass(frozen=True)
class PublishedWeights:
    """One policy version on its way to the engines.

    ``serial`` numbers publications, see `Coordinator.announce`; after a restore an
    older version comes again. ``weights`` says where they lie, ``expected`` is what
    `VLLMEngine.install` checks the arrival with. ``trainer_weights`` refers to the
    trained parameters by name, in their own dtype, where a run has old-logit actors.
    """

    version: int
    weights: Shipment | DeviceShipment
    expected: ExpectedArrival
    trainer_weights: ray.ObjectRef | None = None
    serial: int = 0


@dataclass(frozen=True)
class FinishedGroup:
    """A whole group.

    ``episodes`` refers to them once the coordinator has fetched them from the runner:
    they are its own then, and outlive the runner.
    """

    ticket: Ticket
    outcomes: list[EpisodeOutcome]
    episodes: ray.ObjectRef | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether all episodes earned the same: relative to the group, nothing."""
        from rllib_llm_async.connectors.learner.group_advantages import earn_the_same

        returns = [outcome.episode_return for outcome in self.outcomes]
        return bool(earn_the_same(min(returns), max(returns)))


@dataclass(frozen=True)
class GivenUpGroup:
    """A group that its runner has dropped, and why (`EpisodeError.reason`)."""

    number: int
    reason: str


@dataclass(frozen=True)
class LostTry:
    """Tokens of a try at an episode that failed and is played again."""

    number: int
    num_tokens: int
    reason: str


@dataclass
class Report:
    """What happened at a runner since its last report."""

    runner: int
    session: int
    #: Places for episodes that came free since the session began, the first included.
    num_places: int
    #: Time since the start in which its environments waited for what is down.
    seconds_waited: float = 0.0
    #: Version that the engine samples with; None before the first.
    engine_version: int | None = None
    finished: list[FinishedGroup] = field(default_factory=list)
    given_up: list[GivenUpGroup] = field(default_factory=list)
    lost_tries: list[LostTry] = field(default_factory=list)
    #: Tokens sampled so far, by number of the groups under way.
    progress: dict[int, int] = field(default_factory=dict)
    #: By number of the groups under way: the task, and what it waits for.
    doing: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Orders:
    """What a runner has to do; nothing after a time-out.

    ``retired``: the session is over (the runner was silent for too long, or a
    checkpoint was restored); what it has under way counts for nothing any more.
    """

    weights: PublishedWeights | None = None
    #: The version whose tokens learners want to score before it goes.
    interruption: int | None = None
    tickets: list[Ticket] = field(default_factory=list)
    #: By number of a ticket that a checkpoint has brought: what its members had said,
    #: see `EpisodeService.under_way`.
    records: dict[int, list[Any]] = field(default_factory=dict)
    #: Groups that were trained on or dropped elsewhere.
    settled: list[int] = field(default_factory=list)
    retired: bool = False


@dataclass(frozen=True)
class NextBatch:
    """An update's groups, or none yet; and what has happened meanwhile.

    ``waiting_for``: a sentence on what everything waits for.
    """

    groups: list[FinishedGroup] | None
    outcomes: list[EpisodeOutcome]
    dropped: dict[str, int]
    num_ready: int
    waiting_for: str


@dataclass(frozen=True)
class UpdateEnded:
    """What the driver learns when an update has ended.

    ``accounts`` are figures under their result keys; ``will`` is what
    `Coordinator.set_state` of another coordinator takes, should this one die.
    """

    accounts: dict[str, float]
    will: dict[str, Any]
