"""`rllib report RUN_DIR...`: one self-contained HTML page about one or several runs."""

from __future__ import annotations

from collections.abc import Sequence
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
    page, num_runs = make_page(run_dirs)
    # A model's half of a surrogate pair can stand in JSON, but in no file of text.
    out.write_text(page, encoding="utf-8", errors="replace")
    plural = "" if num_runs == 1 else "s"
    click.echo(f"{out}: {num_runs} run{plural}, open it in a browser")


def make_page(run_dirs: Sequence[Path]) -> tuple[str, int]:
    """The page about the runs in some directories, and how many there are.

    Raises:
        InputError: If there is none, or their results are damaged.
    """
    from rllib_llm_async.report import find_runs, group_runs, render_page

    try:
        runs = find_runs(run_dirs)
    except ValueError as error:
        raise InputError(error) from error
    try:
        return render_page(group_runs(runs)), len(runs)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        raise InputError(
            f"{', '.join(map(str, run_dirs))}: results that are damaged, or of another "
            f"version of this package ({type(e).__name__}: {e})"
        ) from e
