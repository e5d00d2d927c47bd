"""The driver's hold on a run's `Coordinator`: started, asked, replaced if it dies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError
from ray.rllib.core.learner.learner_group import LearnerGroup

from rllib_llm_async.algorithms.async_decoupled_ppo.coordination_state import (
    set_coordination_state,
)
from rllib_llm_async.coordination.coordinator_actor import create_coordinator
from rllib_llm_async.coordination.messages import UpdateEnded
from rllib_llm_async.old_logprobs.old_logit_actor import OldLogitPool

logger = logging.getLogger(__name__)


class Coordination:
    """Starts a coordinator and has everybody follow it; waits for no engine.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        learner_group: RLlib's.
        env_runners: Returns the handles of all env runners.
    """

    def __init__(
        self,
        config: Any,
        learner_group: LearnerGroup,
        env_runners: Callable[[], list[ActorHandle]],
    ) -> None:
        self._config = config
        self._learner_group = learner_group
        self._env_runners = env_runners
        #: What a successor goes on from, of the last update or checkpoint.
        self._will: dict[str, Any] | None = None
        #: Of the last update that a coordinator knew the end of.
        self.accounts: dict[str, float] = {}
        self._start()

    def _start(self) -> None:
        self.coordinator: ActorHandle = create_coordinator(self._config)
        if self._will is not None:
            ray.get(self.coordinator.set_state.remote(self._will))
        #: Actors of the source `old_logit_model`, if a run has any.
        self.old_logit_pool: OldLogitPool | None = None
        if self._config.needs_old_logit_actors:
            self.old_logit_pool = OldLogitPool(self._config, self.coordinator)
            ray.get(self.coordinator.score_with.remote(self.old_logit_pool))
        self.publish_weights()
        for runner in self._env_runners():
            runner.connect.remote(self.coordinator)

    def stop(self) -> None:
        """Ends the coordinator and its old-logit actors."""
        if self.old_logit_pool is not None:
            self.old_logit_pool.stop()
        ray.kill(self.coordinator)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls the coordinator, another one where it has died."""
        try:
            return ray.get(getattr(self.coordinator, method).remote(*arguments))
        except ActorDiedError as error:
            self.replace(error)
            return ray.get(getattr(self.coordinator, method).remote(*arguments))

    def replace(self, error: ActorDiedError) -> None:
        """Starts another one, which goes on from the last update or checkpoint."""
        logger.warning("the coordinator has died, starting another: %s", error)
        self.stop()
        self._start()

    def has_died(self) -> bool:
        """Whether it is the coordinator that an `ActorDiedError` is about."""
        try:
            ray.get(self.coordinator.newest_serial.remote())
        except ActorDiedError:
            return True
        return False

    def end_update(self) -> None:
        """Tells that the update of the last batch has ended; takes its `accounts`.

        Raises:
            ActorDiedError: If the coordinator has died.
        """
        ended: UpdateEnded = ray.get(self.coordinator.consumed.remote())
        self._will, self.accounts = ended.will, ended.accounts

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint, see `get_coordination_state`."""
        set_coordination_state(self.coordinator, state)
        self._will = ray.get(self.coordinator.will.remote())

    def publish_weights(self) -> None:
        """Lets the learners publish what they hold, at their current version."""
        coordinator = self.coordinator
        self._learner_group.foreach_learner(
            lambda learner: learner.connect(coordinator)
        )

    def newest_serial(self) -> int:
        """`PublishedWeights.serial` of the newest version, once engines can have it.

        Raises:
            Exception: What keeps it from them.
        """
        self._learner_group.foreach_learner(lambda learner: learner.finish_publishing())
        return self.ask("newest_serial")
