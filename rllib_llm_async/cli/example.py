"""`rllib example list | get NAME | run NAME`: the bundled tuned YAMLs."""

from __future__ import annotations

from pathlib import Path

import click

from rllib_llm_async.cli.errors import InputError, OneLineErrors
from rllib_llm_async.cli.train import train_file
from rllib_llm_async.settings.names import did_you_mean

EXAMPLES_DIR = Path(__file__).parent.parent / "tuned_examples"


@click.group(cls=OneLineErrors)
def example() -> None:
    """List, print or run the bundled examples."""


@example.command("list")
def list_examples() -> None:
    """Names, each with the first line of its file."""
    for name, path in sorted(_examples().items()):
        click.echo(f"{name}  {path.read_text().splitlines()[0].lstrip('# ')}")


@example.command("get")
@click.argument("name")
def get_example(name: str) -> None:
    """Print the YAML of NAME."""
    click.echo(_path(name).read_text(), nl=False)


@example.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("name")
@click.pass_context
def run_example(context: click.Context, name: str) -> None:
    """Train NAME; further options are those of `rllib train file`."""
    train_file.main([str(_path(name)), *context.args], standalone_mode=False)


def _examples() -> dict[str, Path]:
    return {path.stem: path for path in EXAMPLES_DIR.rglob("*.yaml")}


def _path(name: str) -> Path:
    examples = _examples()
    if name not in examples:
        raise InputError(
            f"unknown example {name!r}{did_you_mean(name, examples)} "
            "(`rllib example list` names them)"
        )
    return examples[name]
