"""Trains the runs of an experiment that are missing.

    python -m experiments.run EXPERIMENT [--hours H] [--only TEXT]...

Stop it at any time: what is complete stands in `experiments/results`, and the next
start goes on with the rest. A run that another experiment has made is taken from there
(the command in its row is the one that made it). Each run has a process and a cluster
of its own.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import click

from experiments.plan import EXPERIMENTS, Run
from experiments.store import Store
from rllib_llm_async.monitoring.versions import installed_versions

#: Longest that one run may take, with the one that it waits for.
RUN_SECONDS = 3600.0


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("experiment", type=click.Choice([*EXPERIMENTS]))
@click.option("--hours", type=float, help="Start no run after so many hours.")
@click.option("--only", multiple=True, help="Runs whose name holds this text.")
@click.option("--list", "only_list", is_flag=True, help="Name the runs, train none.")
def main(
    experiment: str, hours: float | None, only: tuple[str, ...], only_list: bool
) -> None:
    store = Store(experiment)
    all_runs = EXPERIMENTS[experiment].runs
    runs = [r for r in all_runs if not only or any(text in r.name for text in only)]
    adopt_twins(experiment, runs)
    missing = [run for run in runs if run.name not in store.names()]
    click.echo(EXPERIMENTS[experiment].question)
    click.echo(f"{experiment}: {len(missing)} of {len(runs)} runs are missing")
    if only_list:
        for run in runs:
            click.echo(f"{'missing' if run in missing else 'there':8} {run.name}")
        return
    installed = installed_versions().items()
    versions = ", ".join(f"{name} {version}" for name, version in installed)
    end = math.inf if hours is None else time.monotonic() + 3600 * hours
    failed = []
    # While one plays its test tasks, which is mostly waiting for users, another trains.
    with ThreadPoolExecutor(max_workers=2) as pool:
        runs_of = {pool.submit(train_until, end, experiment, r): r for r in missing}
        for number, future in enumerate(as_completed(runs_of), 1):
            run = runs_of[future]
            try:
                found = future.result()
            except (subprocess.SubprocessError, ValueError) as error:
                failed.append(run.name)
                click.echo(f"{run.name}: {error}", err=True)
                continue
            if found is None:
                continue
            store.add(named(experiment, run) | {"versions": versions}, found)
            click.echo(
                f"{number}/{len(missing)} {run.name}: "
                f"avg@4 {found['run']['avg@4']:.3f} after {found['run']['minutes']} min"
            )
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed: {', '.join(failed)}")


def adopt_twins(experiment: str, runs: Iterable[Run]) -> None:
    """Takes from other experiments what they have made: arms of several are one run."""
    store = Store(experiment)
    there = store.names()
    others = {name: Store(name) for name in EXPERIMENTS if name != experiment}
    made = {name: other.names() for name, other in others.items()}
    for run in runs:
        twins = (
            (name, twin.name)
            for name in others
            for twin in EXPERIMENTS[name].runs
            if twin.name in made[name] and run.same_training(twin)
        )
        if run.name not in there and (twin := next(twins, None)):
            name, name_there = twin
            store.adopt(run.name, run.arm, others[name], name_there)
            click.echo(f"{run.name}: is {name_there} of {name}")


def train_until(end: float, experiment: str, run: Run) -> dict | None:
    """None if that time has come before it starts; else see `train_in_a_process`."""
    if time.monotonic() > end:
        return None
    return train_in_a_process(experiment, run)


def train_in_a_process(experiment: str, run: Run) -> dict:
    """What `experiments.train` prints.

    Raises:
        subprocess.SubprocessError: If it fails or takes longer than `RUN_SECONDS`.
        ValueError: If it prints something else.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "experiments.train", experiment, run.name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": "local"},
        timeout=RUN_SECONDS,
        check=True,
    )
    return json.loads(finished.stdout.strip().splitlines()[-1])


def named(experiment: str, run: Run) -> dict[str, str | int]:
    """What a row says of its run beside what it found."""
    return {
        "name": run.name,
        "arm": run.arm,
        "domain": run.domain,
        "seed": run.seed,
        "num_updates": run.num_updates,
        "date": datetime.date.today().isoformat(),
        "command": f'python -m experiments.run {experiment} --only "{run.name}"',
    }


if __name__ == "__main__":
    main()
