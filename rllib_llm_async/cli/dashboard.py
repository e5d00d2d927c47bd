"""`rllib dashboard`: creates the W&B workspace that shows our runs."""

from __future__ import annotations

import click

from rllib_llm_async.cli.errors import InputError


@click.command()
@click.option("--project", required=True, help="The project given to --wandb.")
@click.option("--entity", help="User or team; the account's own by default.")
def dashboard(project: str, entity: str | None) -> None:
    """Create a Weights & Biases workspace for the runs of a project.

    Sections: learning, old logits, staleness, engine, system.
    """
    try:
        import wandb
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"dashboard: {error.name} is missing; pip install wandb wandb-workspaces"
        ) from error
    from rllib_llm_async.monitoring.wandb_workspace import build_workspace

    if not wandb.login(prompt=False):
        raise InputError(
            "dashboard: no W&B account is logged in; run `wandb login`, or set "
            "WANDB_API_KEY (offline runs are sent with `wandb sync` afterwards)"
        )
    workspace = build_workspace(project, entity or wandb.Api().default_entity or "")
    workspace.save()
    click.echo(workspace.url)
