"""What to look at in W&B and in TensorBoard: the same groups, names and figures.

Keys are those of a flat result, and of what `derived_figures` adds to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_llm_async import result_keys
from rllib_llm_async.core import NUM_RATIO_BINS, RATIO_BIN_EDGES
from rllib_llm_async.core.strata import ENTROPY_BUCKETS, entropy_name
from rllib_llm_async.result_keys import (
    DROPPED,
    EPISODES,
    IN_FLIGHT,
    TRAINED,
    at_entropy,
    evaluation,
    learner,
    ledger_count,
    phase_seconds,
    runners,
)

EWMA_RESET, NEW_VERSION = "marks/ewma_reset", "marks/new_version"
#: What a mark follows.
_COUNTED = {
    EWMA_RESET: result_keys.EWMA_NUM_RESETS,
    NEW_VERSION: result_keys.POLICY_VERSION,
}
LOG_R_D, LOG_R_S = "ratios/log_r_d", "ratios/log_r_s"
#: Group -> title of a panel -> keys.
PANELS: dict[str, dict[str, list[str]]] = {
    "learning": {
        "success": [
            runners(result_keys.SUCCESS_RATE),
            evaluation(result_keys.SUCCESS_RATE),
        ],
        "partial credit": [runners(result_keys.RUBRIC_SCORE)],
        "active tokens": [learner(result_keys.ACTIVE_FRACTION)],
        "entropy": [learner(result_keys.ENTROPY)],
        "policy loss": [learner(result_keys.POLICY_LOSS)],
        "gradient norm": [learner(result_keys.GRADIENT_NORM)],
        "cosine of the last two gradients": [learner(result_keys.GRADIENT_COSINE)],
        "learning rate": [learner(result_keys.LEARNING_RATE)],
    },
    "old logits": {
        "kept by the Train-Infer mask": [learner(result_keys.TRAIN_INFER_MASK)],
        "clipped": [learner(result_keys.PPO_CLIP_FRACTION)],
        "kept, by entropy of the token": [
            learner(at_entropy(entropy_name(bucket), result_keys.TRAIN_INFER_MASK))
            for bucket in ENTROPY_BUCKETS
        ],
        "discrepancy, mean |log r_d|": [
            learner(result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN)
        ],
        "staleness, mean |log r_s|": [
            learner(result_keys.STALENESS_LOG_RATIO_ABS_MEAN)
        ],
        "EWMA": [learner(result_keys.EWMA_DECAY), EWMA_RESET],
        "cost of pi_old, s": [phase_seconds("learner", "old logits")],
    },
    "staleness": {
        "versions": [
            learner(result_keys.STALENESS_MEAN),
            learner(result_keys.STALENESS_MAX),
        ],
        "versions per episode": [runners(result_keys.NUM_VERSIONS_PER_EPISODE)],
        "policy version": [learner(result_keys.POLICY_VERSION)],
        "episodes": [
            ledger_count(EPISODES, TRAINED),
            ledger_count(EPISODES, IN_FLIGHT),
            ledger_count(EPISODES, f"{DROPPED}_stale"),
        ],
    },
    "engine": {
        "generated tokens/s": [runners(result_keys.GENERATED_TOKENS_PER_S)],
        "weight transfer, s": [runners(result_keys.WEIGHT_SYNC_SECONDS)],
        "generation paused": [runners(result_keys.GENERATION_PAUSED_FRACTION)],
        "failures": [
            runners(result_keys.NUM_ENV_FAILURES),
            runners(result_keys.NUM_MALFORMED_TOOL_CALLS),
        ],
    },
    "system": {
        "trained tokens/s": [learner(result_keys.TRAIN_TOKENS_PER_S)],
        "waiting and updating, s": [
            phase_seconds("driver", "waiting for episodes"),
            phase_seconds("driver", "waiting for the update"),
        ],
        "snapshots, bytes": [learner(result_keys.SNAPSHOT_BYTES)],
        "padding": [learner(result_keys.PADDING_FRACTION)],
    },
}
#: What runs are listed and compared by, and how W&B sums it up.
HEADLINES = {
    runners(result_keys.SUCCESS_RATE): "last,max",
    evaluation(result_keys.SUCCESS_RATE): "last,max",
    learner(result_keys.TRAIN_INFER_MASK): "last,min,mean",
    learner(result_keys.PPO_CLIP_FRACTION): "last,max,mean",
    learner(result_keys.STALENESS_MEAN): "mean",
}


def ratio_histograms(
    figures: Mapping[str, Any],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Counts and edges of log r_d and log r_s over an update's tokens, by key.

    Args:
        figures: Of the Learners, ``learners/default_policy`` of a result.
    """
    density = figures.get(result_keys.RATIO_DENSITY)
    if density is None:
        return {}
    counts = np.asarray(density).reshape(NUM_RATIO_BINS, NUM_RATIO_BINS)
    # The outer bins are open: they get the width of their neighbours.
    edges = np.asarray(RATIO_BIN_EDGES)
    edges = np.concatenate([[2 * edges[0]], edges, [2 * edges[-1]]])
    return {LOG_R_D: (counts.sum(axis=1), edges), LOG_R_S: (counts.sum(axis=0), edges)}


class Marks:
    """1 in the updates in which something happened, else 0; of one run.

    The first update that it is told of marks nothing: it may be of a run that goes on.
    """

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}

    def of_update(self, figures: Mapping[str, Any]) -> dict[str, int]:
        """By key, for the next update of the run; ``figures`` of its Learners."""
        marks = dict.fromkeys(_COUNTED, 0)
        for mark, key in _COUNTED.items():
            if key in figures:
                marks[mark] = int(figures[key] > self._counts.get(mark, figures[key]))
                self._counts[mark] = figures[key]
        return marks
