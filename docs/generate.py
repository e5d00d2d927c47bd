"""Writes settings.md and the table of names in coming_from.md.

Run as `python docs/generate.py`. What is valid comes from the schema, defaults from the
config, meanings from the docstrings of its methods (of RLlib's own settings the first
sentence of RLlib's), names of other libraries from `settings.names`. A test sees to it
that both are current.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_llm_async import AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig
from rllib_llm_async.algorithms.async_decoupled_ppo.semantics_guard import DEPENDENT
from rllib_llm_async.old_logprobs import source_class, source_names
from rllib_llm_async.settings import schema
from rllib_llm_async.settings.check import SETTINGS
from rllib_llm_async.settings.names import ELSEWHERE

DOCS = Path(__file__).parent
#: The table of names stands between these two lines of its page.
BEGIN, END = "<!-- names: generated -->", "<!-- end of names -->"
_INTRODUCTION = """\
Written by `python docs/generate.py` from the schema that checks them. Each is a key of
`config` in a tuned YAML, of `--set KEY=VALUE`, and an argument of the config's methods
in Python. Where a default differs between the algorithms, the second is that of
`PPOEWMAAsync`. *Acts with* names what a setting needs to have an effect; without that
the run says that it does nothing."""
#: Methods of a config whose docstrings say what settings mean.
_METHODS = (
    "training",
    "evaluation",
    "environment",
    "env_runners",
    "learners",
    "resources",
    "fault_tolerance",
    "debugging",
    "reporting",
    "callbacks",
    "framework",
)
_GROUPS = (
    schema.ModelSettings,
    schema.ObjectiveSettings,
    schema.OptimizerStepSettings,
    schema.LoopSettings,
    schema.ClusterSettings,
)
#: Of settings of which RLlib's sentence would mislead here.
_MEANINGS = {
    "env_config": "Arguments of the environment, e.g. its domains.",
    "callbacks": "RLlib's callbacks, e.g. to log figures of one's own.",
    "evaluation_duration": "Tasks of the test split that an evaluation plays.",
    "evaluation_duration_unit": "What `evaluation_duration` counts; tasks, here.",
    "evaluation_sample_timeout_s": "Bound on a whole evaluation, in seconds; it ends "
    "with the episodes that are there.",
    "evaluation_interval": "Updates between two evaluations; null for none.",
    "framework": "The deep learning framework.",
    "gamma": "Discount per agent turn.",
    "grad_clip": "Bound on the gradient, see `grad_clip_by`.",
    "grad_clip_by": "What is bounded: the norm over all parameters, over each, or "
    "each element.",
    "learner_config_dict": "For a Learner of your own; nothing here reads it.",
    "lr": "Learning rate of AdamW, or its schedule over environment steps, each a turn "
    "of an agent.",
    "minibatch_size": "Episodes per optimizer step and learner; null for one step.",
    "num_epochs": "Passes over the batch of an update.",
    "num_env_runners": "Actors that hold an engine and play episodes.",
    "num_learners": "Learner actors; 0 trains in the algorithm's own process.",
    "optimizer": "Further arguments of `torch.optim.AdamW`.",
    "seed": "Of sampling, the order of tasks and the learners.",
    "torch_ddp_kwargs": "Arguments of `DistributedDataParallel`.",
}


def settings_page() -> str:
    """The page of all settings."""
    rows = [
        "# All settings",
        "",
        _INTRODUCTION,
    ]
    for group in _GROUPS:
        rows += ["", f"## {(group.__doc__ or '').strip().rstrip('.')}", ""]
        rows += ["| setting | default | must be | means | acts with |"]
        rows += ["|---|---|---|---|---|"]
        rows += [_row(name, field) for name, field in group.model_fields.items()]
    return "\n".join(rows) + "\n"


def names_table() -> str:
    """Other libraries' names and ours, a table for each library."""
    rows = []
    for library, names in ELSEWHERE.items():
        rows += ["", f"### {library}", "", "| there | here | |", "|---|---|---|"]
        for theirs, ours in sorted(names.items()):
            name, _, note = ours.partition(" ")
            rows.append(f"| `{theirs}` | `{name}` | {_cell(note.strip('()'))} |")
    return "\n".join(rows[1:])


def with_names(page: str) -> str:
    """A page with the table in its place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{names_table()}\n\n{END}{rest.partition(END)[2]}"


def _row(name: str, field: Any) -> str:
    defaults = [_default(cls(), name) for cls in _CONFIGS]
    default = defaults[0] if len(set(defaults)) == 1 else "; ".join(defaults)
    meaning = _meanings().get(name, "")
    return (
        f"| `{name}` | {default} | {_cell(field.description or '')} | {_cell(meaning)} "
        f"| {_cell(', '.join(_acts_with(name)))} |"
    )


_CONFIGS = (AsyncDecoupledPPOConfig, PPOEWMAAsyncConfig)


def _default(config: Any, name: str) -> str:
    value = getattr(config, schema.ATTRIBUTES.get(name, name))
    try:
        return f"`{json.dumps(value)}`"
    except TypeError:  # a class
        return f"`{value.__module__}.{value.__qualname__}`"


def _acts_with(name: str) -> Iterator[str]:
    sources = [s for s in source_names() if name in source_class(s).reads]
    if sources:
        yield f"`old_logprob_source`: {', '.join(sources)}"
    if name in DEPENDENT:
        other, value = DEPENDENT[name]
        yield f"`{other}`: {value}"


def _meanings() -> dict[str, str]:
    found: dict[str, str] = {}
    for cls, methods in (
        (AlgorithmConfig, _METHODS),
        (AsyncDecoupledPPOConfig, ("training", "evaluation")),
    ):
        for method in methods:
            text = inspect.getdoc(getattr(cls, method)) or ""
            for name, words in _arguments(text):
                if name in SETTINGS:
                    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`])", words)[0]
                    found[name] = sentence if cls is AlgorithmConfig else words
    return found | _MEANINGS


def _arguments(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and texts of the ``Args:`` of a Google docstring."""
    _, _, arguments = docstring.partition("Args:\n")
    block = re.split(r"\n(?=\S)", arguments)[0]
    for match in re.finditer(
        r"^    (\w+)(?: \([^)]*\))?:(.*(?:\n(?:     .*)?)*)", block, re.MULTILINE
    ):
        yield match[1], " ".join(match[2].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("``", "`")


if __name__ == "__main__":
    (DOCS / "settings.md").write_text(settings_page())
    coming_from = DOCS / "coming_from.md"
    coming_from.write_text(with_names(coming_from.read_text()))
