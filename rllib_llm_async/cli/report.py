"""`rllib report RUN_DIR...`: one self-contained HTML page about one or several runs."""

from __future__ import annotations

from pathlib import Path

import click

from rllib_llm_async.cli.errors import InputError


@click.command()
@click.argument(
    "run_dirs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN_DIR...",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="The file to write.",
)
def report(run_dirs: tuple[Path, ...], out: Path) -> None:
    """Write a page of plots about the runs in RUN_DIR.

    RUN_DIR is the directory of a trial or of a whole experiment. Runs that differ by
    their seed alone become one curve with a confidence band.
    """
    for directory in run_dirs:
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: not a file in an existing directory")
    from rllib_llm_async.report import find_runs, group_runs, render_page

    try:
        runs = find_runs(run_dirs)
    except ValueError as error:
        raise InputError(error) from error
    out.write_text(render_page(group_runs(runs)), encoding="utf-8")
    plural = "" if len(runs) == 1 else "s"
    click.echo(f"{out}: {len(runs)} run{plural}, open it in a browser")
