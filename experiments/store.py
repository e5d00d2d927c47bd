"""What runs have found, as CSV files in `results`: one row a run, an update, a lag,
an entropy."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
#: Tables of an experiment; "run" is written last: what it lacks is trained (again).
TABLES = ("updates", "lags", "entropies", "run")

Row = dict[str, str]


class Store:
    """The tables of one experiment.

    Args:
        experiment: Its name.
        directory: Of the files, ``<experiment>_<table>.csv``.
    """

    def __init__(self, experiment: str, directory: Path = RESULTS) -> None:
        self._paths = {
            table: directory / f"{experiment}_{table}.csv" for table in TABLES
        }

    def read(self, table: str) -> list[Row]:
        """All rows of a table, as text; none if nothing has been found yet."""
        path = self._paths[table]
        if not path.exists():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def names(self) -> set[str]:
        """Of the runs that are complete."""
        return {row["name"] for row in self.read("run")}

    def add(self, run: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Adds what a run has found; what a run of that name had found before goes.

        Args:
            run: Columns that name it, ``name`` among them.
            found: See `experiments.train.train`.
        """
        tables = {**found, "run": [found["run"]]}
        for table in TABLES:
            kept = [r for r in self.read(table) if r["name"] != run["name"]]
            named = run if table == "run" else {"name": run["name"]}
            new = [{**named, **_rounded(row)} for row in tables[table]]
            _write(self._paths[table], [*kept, *new])

    def adopt(self, name: str, of_arm: str, there: Store, name_there: str) -> None:
        """Adds what a run of another experiment has found, under a name of this one.

        Its seed, date, versions and command stay those of the run that was made.
        """
        found = {
            table: [
                {k: v for k, v in row.items() if k != "name"}
                for row in there.read(table)
                if row["name"] == name_there
            ]
            for table in TABLES
        }
        (row,) = found["run"]
        self.add({"name": name}, {**found, "run": {**row, "arm": of_arm}})


def rows_by(rows: Iterable[Row], column: str) -> dict[str, list[Row]]:
    """Groups of rows that have one value in a column, in the order of the first."""
    grouped: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        grouped[row[column]].append(row)
    return dict(grouped)


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """At once or not at all, so that a stopped command leaves the rows it had."""
    rows = list(rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    new.replace(path)
