"""Reads a trial's directory: result.json, params.json, run.jsonl, dialogues.jsonl."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async import result_keys
from rllib_llm_async.monitoring.versions import STARTS_FILE

if TYPE_CHECKING:
    from rllib_llm_async.monitoring.timeline import Span

RESULT_FILE = "result.json"
DIALOGUES_FILE = "dialogues.jsonl"
#: Where RLlib keeps results by default.
_WITHOUT_TUNE = "ray_results"


@dataclass
class Run:
    """One trial.

    ``rows`` holds one flat dict ("learners/default_policy/...": value) per iteration,
    ``settings`` what the user set, ``config`` all of the algorithm's settings,
    ``versions`` by package that of every start of the run.
    """

    directory: Path
    rows: list[dict[str, Any]]
    settings: dict[str, Any]
    config: dict[str, Any]
    dialogues: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def experiment(self) -> str:
        """Name of the experiment that the trial belongs to."""
        parent = self.directory.parent.name
        # `algo.train()` without Tune writes there directly, in a directory per run.
        return self.directory.name if parent == _WITHOUT_TUNE else parent

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Iterations and values of a key, where it is a number."""
        pairs = [
            (row["training_iteration"], float(row[key]))
            for row in self.rows
            if is_number(row.get(key))
        ]
        return [x for x, _ in pairs], [y for _, y in pairs]

    def spans(self) -> list[list[Span]]:
        """The time line of every iteration that has one."""
        key = result_keys.TIMELINE
        return [[tuple(span) for span in row[key]] for row in self.rows if row.get(key)]

    def last(self, key: str) -> float | None:
        """The key's last value, None if there is none."""
        _, values = self.series(key)
        return values[-1] if values else None


def find_runs(directories: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """All trials in or below the directories, in order of their paths.

    Raises:
        ValueError: If a directory holds no result; says what is expected.
    """
    runs: dict[Path, Run] = {}
    for directory in directories:
        files = sorted(Path(directory).resolve().rglob(RESULT_FILE))
        found = [run for run in map(_read_run, files) if run.rows]
        if not found:
            reason = (
                "no iteration has ended yet" if files else f"no {RESULT_FILE} in it"
            )
            raise ValueError(
                f"{directory}: {reason}; give a trial's or an experiment's directory "
                "below the --storage-path of `rllib train` (results/NAME by default)"
            )
        runs |= {run.directory: run for run in found}
    return list(runs.values())


def _read_run(result_file: Path) -> Run:
    rows: dict[int, dict[str, Any]] = {}
    config: dict[str, Any] = {}
    for row in read_json_lines(result_file):
        config = row.pop("config", config)
        if type(row.get("training_iteration")) is int:
            # An interrupted run repeats the iterations since its last checkpoint.
            rows[row["training_iteration"]] = dict(_flatten(row))
    directory = result_file.parent
    starts = list(read_json_lines(directory / STARTS_FILE))
    return Run(
        directory,
        [rows[iteration] for iteration in sorted(rows)],
        _settings(directory, starts),
        config,
        list(filter(_is_dialogue, read_json_lines(directory / DIALOGUES_FILE))),
        _versions(starts),
    )


def _settings(directory: Path, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As the run noted them down when it began or went on last, else as Tune did."""
    if starts and isinstance(starts[-1].get("settings"), dict):
        return {"env": starts[-1].get("env"), **starts[-1]["settings"]}
    try:
        settings = json.loads((directory / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _versions(starts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    versions: dict[str, list[str]] = defaultdict(list)
    for start in starts:
        if isinstance(of_start := start.get("versions"), dict):
            for package, version in of_start.items():
                if str(version) not in versions[package]:
                    versions[package].append(str(version))
    return dict(versions)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; a line cut off by an interruption is left out.

    A file that is not there has none.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can be."""
    try:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        )
    except OverflowError:  # 10**400
        return False


def _is_dialogue(value: dict[str, Any]) -> bool:
    """Whether its shape is that of a `DialogueRecord`, as far as the page needs."""
    messages = value.get("messages")
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and all(isinstance(call, dict) for call in message.get("tool_calls") or ())
        for message in messages
    )


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
