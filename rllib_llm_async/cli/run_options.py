"""What a command says of how its experiments run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunOptions:
    """Where results go, which checkpoints are kept, and who is told."""

    storage_path: str
    checkpoint_freq: int
    keep_checkpoints: int
    wandb_project: str | None
