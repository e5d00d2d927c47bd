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
        "source": learner.config.old_logprob_source,
        "source_state": learner._source.get_state(),
        "compared_states": learner._comparison.get_state()
        if learner._comparison is not None
        else {},
    }


def set_async_state(
    learner: AsyncDecoupledPPOTorchLearner, state: dict[str, Any]
) -> None:
    """Restores it, after the weights have been restored."""
    learner._version = state["version"]
    learner._num_skipped_steps = state["num_skipped_steps"]
    learner._build_sources()
    # Another source chosen on resume starts from today's weights.
    if state["source"] == learner.config.old_logprob_source:
        learner._source.set_state(state["source_state"])
    if learner._comparison is not None:
        learner._comparison.set_state(state["compared_states"])
