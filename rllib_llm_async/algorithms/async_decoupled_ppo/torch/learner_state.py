"""What a checkpoint holds of a Learner beside RLlib's own: versions and sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_llm_async.algorithms.async_decoupled_ppo.torch import (
        AsyncDecoupledPPOTorchLearner,
    )

#: Component of the checkpoint.
ASYNC_STATE = "async_decoupled_ppo"


def get_async_state(learner: AsyncDecoupledPPOTorchLearner) -> dict[str, Any]:
    """The state under `ASYNC_STATE`: copies, in host memory."""
    return {
        "version": learner._version,
        "num_skipped_steps": learner._num_skipped_steps,
        "sources": learner._sources.get_state(),
    }


def set_async_state(
    learner: AsyncDecoupledPPOTorchLearner, state: dict[str, Any]
) -> None:
    """Restores it, after the weights have been restored."""
    learner._version = state["version"]
    learner._num_skipped_steps = state["num_skipped_steps"]
    learner._build_sources()
    learner._sources.set_state(state["sources"])
