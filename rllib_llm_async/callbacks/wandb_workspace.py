"""The W&B workspace of our runs: what to look at, in sections."""

from __future__ import annotations

from typing import Any

_LEARNER = "learners/default_policy"
_RUNNERS = "env_runners"
#: Section -> panel title -> keys of `WandbLogger`'s history.
SECTIONS: dict[str, dict[str, list[str]]] = {
    "learning": {
        "success": [
            f"{_RUNNERS}/success_rate",
            "evaluation/env_runners/success_rate",
        ],
        "partial credit": [f"{_RUNNERS}/rubric_score"],
        "active tokens": [f"{_LEARNER}/active_fraction"],
        "entropy": [f"{_LEARNER}/entropy"],
        "policy loss": [f"{_LEARNER}/policy_loss"],
    },
    "old logits": {
        "kept by the Train-Infer mask": [f"{_LEARNER}/train_infer_mask"],
        "clipped": [f"{_LEARNER}/ppo_clip_fraction"],
        "discrepancy, mean |log r_d|": [f"{_LEARNER}/discrepancy_log_ratio_abs_mean"],
        "staleness, mean |log r_s|": [f"{_LEARNER}/staleness_log_ratio_abs_mean"],
        "EWMA": [f"{_LEARNER}/ewma_decay", "marks/ewma_reset"],
        "cost of pi_old, s": [f"{_LEARNER}/old_logprob_seconds"],
    },
    "staleness": {
        "versions": [f"{_LEARNER}/staleness_mean", f"{_LEARNER}/staleness_max"],
        "versions per episode": [f"{_RUNNERS}/num_versions_per_episode"],
        "policy version": [f"{_LEARNER}/policy_version"],
        "dropped episodes": [
            f"{_RUNNERS}/num_episodes_dropped_stale",
            f"{_RUNNERS}/num_episodes_dropped_lost",
        ],
    },
    "engine": {
        "generated tokens/s": [f"{_RUNNERS}/generated_tokens_per_s"],
        "weight transfer, s": [f"{_RUNNERS}/weight_sync_seconds"],
        "generation paused": [f"{_RUNNERS}/generation_paused_fraction"],
        "failures": [
            f"{_RUNNERS}/num_env_failures",
            f"{_RUNNERS}/num_malformed_tool_calls",
        ],
    },
    "system": {
        "trained tokens/s": [f"{_LEARNER}/train_tokens_per_s"],
        "waiting and updating, s": ["timers/sample", "timers/learner_update_timer"],
        "snapshots, bytes": [f"{_LEARNER}/snapshot_bytes"],
        "padding": [f"{_LEARNER}/padding_fraction"],
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
