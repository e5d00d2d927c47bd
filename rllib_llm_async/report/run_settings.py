"""With what runs ran: their settings beside each other, and versions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rllib_llm_async.settings.check import SETTINGS
from rllib_llm_async.settings.schema import ATTRIBUTES

if TYPE_CHECKING:
    from rllib_llm_async.report.groups import Group
    from rllib_llm_async.report.load import Run

#: Named in a label even where the user left it at its default.
SOURCE = "old_logprob_source"


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A nested mapping's values by dotted key."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def source_of(run: Run) -> str:
    """The source of old log-probabilities that the run trained with."""
    return str(run.config.get(SOURCE) or run.settings.get(SOURCE) or "unknown")


def given_settings(runs: Sequence[Run]) -> list[str]:
    """Dotted keys that somebody set, in one of the runs at least; without the seed.

    A run that did not note down what it was given, and that Python started, lists all
    that RLlib knows: only settings of ours count.
    """
    given = {key for run in runs for key, _ in leaves(run.settings)}
    return sorted(key for key in given if _is_setting(key) and key != "seed")


def effective(run: Run, key: str) -> Any:
    """What a run had, given or by default."""
    if key == SOURCE:
        return source_of(run)
    first, *rest = key.split(".")
    # Results name some settings as RLlib's config does, some as its methods do, and
    # `lambda_` without its underscore.
    names = (ATTRIBUTES.get(first), first, first.rstrip("_"))
    name = next((name for name in names if name in run.config), None)
    if name is None:
        return dict(leaves(run.settings)).get(key)
    value: Any = run.config
    for part in (name, *rest):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def settings_table(groups: Sequence[Group]) -> dict[str, list[str]]:
    """By key, what every group had; of keys that somebody set, and the seeds."""
    runs = [group.runs[0] for group in groups]
    table = {
        key: ["-" if (v := effective(run, key)) is None else str(v) for run in runs]
        for key in given_settings([run for group in groups for run in group.runs])
    }
    seeds = [[str(run.config.get("seed", "-")) for run in g.runs] for g in groups]
    return {**table, "seed": [", ".join(of_group) for of_group in seeds]}


def versions_lines(groups: Sequence[Group]) -> list[str]:
    """A line for all groups that ran on the same versions."""
    labels: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        for text in dict.fromkeys(_versions(run) for run in group.runs):
            labels[text].append(group.label)
    if len(labels) == 1:
        return list(labels)
    return [f"{', '.join(names)}: {text}" for text, names in labels.items()]


def _versions(run: Run) -> str:
    if not run.versions:
        return "Versions were not noted down."
    return ", ".join(
        f"{package} {', then '.join(versions)}"
        for package, versions in run.versions.items()
    )


def _is_setting(key: str) -> bool:
    first = key.split(".")[0]
    return first in SETTINGS or first == "env"
