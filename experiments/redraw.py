"""Redraws the tables and figures of docs/evidence.md from `experiments/results`.

    python -m experiments.redraw

What stands between ``<!-- NAME: drawn -->`` and ``<!-- end of NAME -->`` is replaced,
for each experiment that has results; all other text stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import click

from benchmarks.figures import write_figure
from experiments.figures import NUMBERED, figures_of
from experiments.plan import EXPERIMENTS
from experiments.statistics import LEAST, bootstrap
from experiments.store import Row, Store, rows_by

DOCS = Path(__file__).parent.parent / "docs"
#: Arms with which all others of an experiment are compared, run by run.
REFERENCES = {
    "steps": ("snapshot_old, lr 0.005", "snapshot_old, lr 0.01"),
    "sources": ("snapshot_old", "rollout"),
    "thresholds": ("snapshot_old: eps_ti 1.05, eps_stale 1.2",),
    "ewma": ("decay auto, reset",),
    "mixture": ("dense",),
}
#: Updates at the end of a run over which training success is a mean: steadier than what
#: the very last step happens to leave.
LATE = 5
#: Means over the updates of all runs of an arm.
OF_UPDATES = {
    "staleness": "staleness",
    "log_r_d_square": "rms log r_d",
    "log_r_s_square": "rms log r_s",
    "effective_samples": "ESS of r_d r_s",
    "kept": "kept",
    "clipped": "clipped",
}
#: Means over the tokens of a lag or an entropy.
OF_STRATA = {
    "share": "share of tokens",
    "log_r_d": "mean abs log r_d",
    "log_r_d_square": "rms log r_d",
    "log_r_s": "mean abs log r_s",
    "log_r_s_square": "rms log r_s",
    "kept": "kept",
    "clipped": "clipped",
}


def drawn(experiment: str, store: Store) -> str:
    """The part of the page on an experiment, without its figure's file."""
    runs, updates, lags, entropies = (
        in_plan_order(experiment, store.read(table))
        for table in ("run", "updates", "lags", "entropies")
    )
    planned = len(EXPERIMENTS[experiment].runs)
    parts = [
        f"{len(runs)} of {planned} runs, `python -m experiments.run {experiment}`. "
        f"Means over runs: of {LEAST} or more with a 95 % interval by bootstrap, of "
        "fewer with their range.",
        arms_table(runs, updates),
    ]
    if len({run["domain"] for run in runs}) > 1:
        parts.append(domains_table(runs))
    arms = {run["arm"] for run in runs}
    parts += [
        differences_table(runs, reference)
        for reference in REFERENCES.get(experiment, ())
        if reference in arms and len(arms) > 1
    ]
    if experiment == "sources":
        parts.append(cost_table(runs, updates))
    if experiment in ("regimes", "mixture"):
        parts.append(folded("By version lag", strata_table(lags, "lag")))
    if experiment == "regimes":
        parts += [t for t in [errors_table(runs)] if t]
    if experiment == "thresholds":
        parts.append(folded("By entropy", strata_table(entropies, "entropy")))
    parts += [
        f"![{title}](figures/evidence_{experiment}_{name}.svg)"
        for name, (title, _) in figures_of(experiment).items()
    ]
    return "\n\n".join(parts)


def in_plan_order(experiment: str, rows: Sequence[Row]) -> list[Row]:
    """Arm by arm as the experiment names them, whenever their runs were made."""
    arms = list(dict.fromkeys(run.arm for run in EXPERIMENTS[experiment].runs))
    place = {run.name: arms.index(run.arm) for run in EXPERIMENTS[experiment].runs}
    return sorted(rows, key=lambda row: place.get(row["name"], len(arms)))


def arms_table(runs: Sequence[Row], updates: Sequence[Row]) -> str:
    """A row per arm: how well its runs ended, and what their updates looked like."""
    of_run = rows_by(updates, "name")
    rows = []
    for arm, own in rows_by(runs, "arm").items():
        own_updates = [update for run in own for update in of_run[run["name"]]]
        late = [update for run in own for update in of_run[run["name"]][-LATE:]]
        rows.append(
            [
                arm,
                str(len(own)),
                str(bootstrap([float(run["avg@4"]) for run in own])),
                f"{fmean(float(run['pass@4']) for run in own):.3f}",
                _mean(late, "success"),
                f"{fmean(float(run['samples_per_hour']) for run in own):,.0f}",
                *(_mean(own_updates, column) for column in OF_UPDATES),
            ]
        )
    last = f"success, last {LATE} updates"
    titles = ["arm", "runs", "avg@4", "pass@4", last, "samples/h"]
    return table([*titles, *OF_UPDATES.values()], rows)


def _mean(rows: Sequence[Row], column: str) -> str:
    """Of a column; of squares its root."""
    values = [float(row[column]) for row in rows if row.get(column)]
    if not values:
        return ""
    mean = fmean(values)
    return f"{math.sqrt(mean) if column.endswith('_square') else mean:.3g}"


def domains_table(runs: Sequence[Row]) -> str:
    """avg@4 of each arm in each domain."""
    domains = list(rows_by(runs, "domain"))
    rows = []
    for arm, own in rows_by(runs, "arm").items():
        in_domain = rows_by(own, "domain")
        rows.append([arm, *(_mean(in_domain.get(d, []), "avg@4") for d in domains)])
    return table(["avg@4", *domains], rows)


def differences_table(runs: Sequence[Row], reference: str) -> str:
    """avg@4 of an arm less that of the reference, same domain and seed; where a number
    tells arms apart, of those with the reference's."""
    arms = rows_by(runs, "arm")
    if NUMBERED.match(reference):
        value = reference.rpartition(", ")[2]
        arms = {arm: own for arm, own in arms.items() if arm.endswith(f", {value}")}
    of_reference = {_pair(run): float(run["avg@4"]) for run in arms[reference]}
    rows = []
    for arm, own in arms.items():
        differences = [
            float(run["avg@4"]) - of_reference[_pair(run)]
            for run in own
            if arm != reference and _pair(run) in of_reference
        ]
        if differences:
            interval = bootstrap(differences)
            verdict = {True: "yes", False: "no", None: f"under {LEAST} pairs"}
            said = verdict[interval.excludes_zero]
            rows.append([arm, str(interval.count), str(interval), said])
    return table(["arm", "pairs", f"avg@4 less that of {reference}", "differs"], rows)


def _pair(run: Row) -> tuple[str, str]:
    return run["domain"], run["seed"]


def cost_table(runs: Sequence[Row], updates: Sequence[Row]) -> str:
    """What each source costs an update, and what it stores."""
    of_run = rows_by(updates, "name")
    rows = []
    for arm, own in rows_by(runs, "arm").items():
        # The first update loads and compiles what later ones find ready.
        later = [u for run in own for u in of_run[run["name"]] if u["update"] != "1"]
        stored = _mean(later, "snapshot_bytes")
        rows.append(
            [
                arm,
                _mean(later, "old_logprob_seconds"),
                f"{float(stored) / 2**20:.3g}" if stored else "0",
            ]
        )
    return table(["source", "s per update for log pi_old", "MiB of snapshots"], rows)


def strata_table(rows: Sequence[Row], column: str) -> str:
    """By arm and lag, or entropy, what the two ratios are and what the bounds do."""
    cells = []
    arms = rows_by([{**row, "arm": row["name"].split("/")[0]} for row in rows], "arm")
    for arm, own in arms.items():
        for stratum, of_stratum in rows_by(own, column).items():
            shown = (_mean(of_stratum, key) for key in OF_STRATA)
            name = stratum.replace("_plus", " or more").replace("_", " to ")
            cells.append([arm, name, *shown])
    titles = {"lag": "lag", "entropy": "entropy from, nats"}
    return table(["arm", titles[column], *OF_STRATA.values()], cells)


def errors_table(runs: Sequence[Row]) -> str:
    """Error of each source beside the exact one; empty if none was compared."""
    columns = [c for c in runs[0] if c.startswith("error_")]
    rows = [
        [arm, *(_mean(own, column) for column in columns)]
        for arm, own in rows_by(runs, "arm").items()
        if any(own[0][column] for column in columns)
    ]
    titles = ["mean abs error of log pi_old", *(c[len("error_") :] for c in columns)]
    return table(titles, rows) if rows else ""


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def folded(title: str, part: str) -> str:
    """What only those see who ask for it."""
    return f'<details markdown="1"><summary>{title}</summary>\n\n{part}\n\n</details>'


def replace_drawn(page: str, parts: Mapping[str, str]) -> str:
    """The page with each part between its two comments.

    Raises:
        ValueError: If a comment is missing.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}: drawn -->", f"<!-- end of {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        new = f"{begin}\n\n{part}\n\n{end}"
        page, count = pattern.subn(lambda _, new=new: new, page)
        if count != 1:
            raise ValueError(f"the page needs {begin} and {end} once")
    return page


@click.command(help=(__doc__ or "").splitlines()[0])
def main() -> None:
    path = DOCS / "evidence.md"
    found = {name: Store(name) for name in EXPERIMENTS if Store(name).names()}
    parts = {name: drawn(name, store) for name, store in found.items()}
    path.write_text(replace_drawn(path.read_text("utf-8"), parts), "utf-8")
    print(f"{path.name}: {', '.join(parts) or 'nothing yet'}")
    for name, store in found.items():
        for kind, (_, draw) in figures_of(name).items():
            out = DOCS / "figures" / f"evidence_{name}_{kind}.svg"
            tables = (in_plan_order(name, store.read(t)) for t in ("run", "updates"))
            write_figure(draw(*tables), out)


if __name__ == "__main__":
    main()
