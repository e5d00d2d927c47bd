"""What a checkpoint holds of a Learner beside RLlib's own: versions and sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_llm_async.algorithms.async_decoupled_ppo.torch import (
        AsyncDecoupledPPOTorchLearner,
    )

#: Component of the checkpoint.
ASYNC_STATE = "async_decoupled_ppo"


#: Settings under which alone the saved weights, moments and snapshots mean the same.
_SAME = ("lora", "compute_dtype")


def get_async_state(learner: AsyncDecoupledPPOTorchLearner) -> dict[str, Any]:
    """The state under `ASYNC_STATE`: copies, in host memory."""
    reference = learner._reference
    return {
        "settings": {key: getattr(learner.config, key) for key in _SAME},
        "version": learner._version,
        "num_skipped_steps": learner._num_skipped_steps,
        "sources": learner._sources.get_state(),
        # Those that training started from, whatever ``model`` holds by then.
        "reference": reference
        and {name: tensor.to("cpu", copy=True) for name, tensor in reference.items()},
    }


def set_async_state(
    learner: AsyncDecoupledPPOTorchLearner, state: Mapping[str, Any]
) -> None:
    """Restores it, after the weights have been restored.

    Raises:
        ValueError: If the run computes something else from its weights.
    """
    _check_same_settings(learner.config, state["settings"])
    learner._version = state["version"]
    learner._num_skipped_steps = state["num_skipped_steps"]
    if learner._reference is not None and state["reference"] is not None:
        for name, tensor in learner._reference.items():
            tensor.copy_(state["reference"][name])
    learner._build_sources()
    learner._sources.set_state(state["sources"])


def _check_same_settings(config: Any, saved: Mapping[str, Any]) -> None:
    different = [
        f"{key} (checkpoint: {value!r}, this run: {getattr(config, key)!r})"
        for key, value in saved.items()
        if value != getattr(config, key)
    ]
    if different:
        raise ValueError(
            f"the checkpoint was trained with another {' and '.join(different)}; set "
            "the checkpoint's, or export its model and start a new run from that"
        )
