"""The `rllib` command: train, evaluate and example, one file each.

Ray ships no such command any more; the grammar is the one it had.
"""

from __future__ import annotations

import click

from rllib_llm_async.cli.dashboard import dashboard
from rllib_llm_async.cli.errors import OneLineErrors
from rllib_llm_async.cli.evaluate import evaluate
from rllib_llm_async.cli.example import example
from rllib_llm_async.cli.export import export
from rllib_llm_async.cli.numerics import numerics
from rllib_llm_async.cli.report import report
from rllib_llm_async.cli.size import size
from rllib_llm_async.cli.train import train


@click.group(
    cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="rllib_llm_async")
def main() -> None:
    """Train and evaluate LLM agents with asynchronous PPO on RLlib."""


main.add_command(train)
main.add_command(evaluate)
main.add_command(example)
main.add_command(report)
main.add_command(export)
main.add_command(dashboard)
main.add_command(size)
main.add_command(numerics)
