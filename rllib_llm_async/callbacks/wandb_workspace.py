"""The W&B workspace of our runs: what to look at, in sections."""

from __future__ import annotations

from typing import Any

from rllib_llm_async import result_keys
from rllib_llm_async.result_keys import evaluation, learner, phase_seconds, runners

#: Section -> panel title -> keys of `WandbLogger`'s history.
SECTIONS: dict[str, dict[str, list[str]]] = {
    "learning": {
        "success": [
            runners(result_keys.SUCCESS_RATE),
            evaluation(result_keys.SUCCESS_RATE),
        ],
        "partial credit": [runners(result_keys.RUBRIC_SCORE)],
        "active tokens": [learner(result_keys.ACTIVE_FRACTION)],
        "entropy": [learner(result_keys.ENTROPY)],
        "policy loss": [learner(result_keys.POLICY_LOSS)],
    },
    "old logits": {
        "kept by the Train-Infer mask": [learner(result_keys.TRAIN_INFER_MASK)],
        "clipped": [learner(result_keys.PPO_CLIP_FRACTION)],
        "discrepancy, mean |log r_d|": [
            learner(result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN)
        ],
        "staleness, mean |log r_s|": [
            learner(result_keys.STALENESS_LOG_RATIO_ABS_MEAN)
        ],
        "EWMA": [learner(result_keys.EWMA_DECAY), "marks/ewma_reset"],
        "cost of pi_old, s": [phase_seconds("learner", "old logits")],
    },
    "staleness": {
        "versions": [
            learner(result_keys.STALENESS_MEAN),
            learner(result_keys.STALENESS_MAX),
        ],
        "versions per episode": [runners(result_keys.NUM_VERSIONS_PER_EPISODE)],
        "policy version": [learner(result_keys.POLICY_VERSION)],
        "dropped episodes": [
            runners(result_keys.NUM_EPISODES_DROPPED_STALE),
            runners(result_keys.NUM_EPISODES_DROPPED_LOST),
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


def build_workspace(project: str, entity: str) -> Any:
    """A `wandb_workspaces.workspaces.Workspace`; ``save()`` creates it and its URL."""
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    return workspaces.Workspace(
        name="rllib_llm_async",
        project=project,
        entity=entity,
        sections=[
            workspaces.Section(
                name=name,
                is_open=True,
                panels=[
                    panels.LinePlot(title=title, x="training_iteration", y=[*keys])
                    for title, keys in plots.items()
                ],
            )
            for name, plots in SECTIONS.items()
        ],
    )
