"""Dialogues for people: what was said, with version and log-probability per token.

A `DialogueRecord` is one episode; as a dict it is one line of a ``dialogues.jsonl``.
The renderers take such dicts, fresh or read from a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_llm_async.batch import columns
from rllib_llm_async.chat.messages import text_of
from rllib_llm_async.envs.agent_env import Message
from rllib_llm_async.envs.tool_calls import encodable

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from rllib_llm_async.env_runners.episode_outcome import EpisodeOutcome

#: Samples of a training run's evaluations, beside its result.json.
FILE_NAME = "dialogues.jsonl"
#: Of its end, in which the newest evaluation's are looked for.
NEWEST_BYTES = 64 << 20
#: Tokens at least this probable are shown together, not one by one.
CERTAIN = 0.9


@dataclass(frozen=True)
class DialogueRecord:
    """One episode as plain data.

    ``messages`` are OpenAI messages, whose content is text or None; those of the agent
    have further lists, one item per token: ``tokens`` (text), ``versions`` (policy
    version that sampled it) and ``logp`` (its log-probability then).
    ``policy_version`` is the newest of them.
    """

    task: str
    domain: str
    success: bool
    reward: float
    reward_breakdown: dict[str, Any]
    reason: str
    policy_version: int
    messages: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        episode: SingleAgentEpisode,
        outcome: EpisodeOutcome,
        decode: Callable[[Sequence[int]], str],
    ) -> DialogueRecord:
        """Reads it off an episode that was played with ``keep_messages``.

        Args:
            episode: See `EpisodePlayer.play`.
            outcome: How it ended.
            decode: From token ids to text.
        """
        outputs = episode.extra_model_outputs
        messages = [*map(_as_json, episode.custom_data[columns.EPISODE_MESSAGES])]
        spoken = [m for m in messages if m["role"] == "assistant"]
        newest = 0
        for message, tokens, versions, logp in zip(
            # Before them may stand a greeting that nobody sampled.
            spoken[-len(episode) :],
            episode.actions.data,
            outputs[columns.EPISODE_VERSIONS].data,
            outputs[columns.EPISODE_BEHAVIOR_LOGP].data,
            strict=True,
        ):
            message["tokens"] = [decode([token]) for token in tokens.tolist()]
            message["versions"] = versions.tolist()
            message["logp"] = [round(float(value), 4) for value in logp]
            newest = max([newest, *message["versions"]])
        return cls(
            task=outcome.task.id,
            domain=outcome.domain,
            success=outcome.success,
            reward=float(outcome.episode_return),
            reward_breakdown=outcome.reward_breakdown,
            reason=outcome.reason,
            policy_version=newest,
            messages=messages,
        )


def _as_json(message: Message) -> dict[str, Any]:
    """The message as JSON can hold it: environments say dates, arrays and the like."""
    kept = {str(key): _plain(value) for key, value in message.items()}
    if message.get("content") is not None:
        kept["content"] = _text(message["content"])
    return kept


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):  # e.g. dates for keys, a cycle
        return str(value)


def _text(content: Any) -> str:
    """As the agent reads it; what it cannot read, after the last turn, as Python."""
    try:
        return text_of(content)
    except ValueError:
        return str(content)


def write_jsonl(path: Path, dialogues: Iterable[Mapping[str, Any]]) -> None:
    """Writes one dialogue per line."""
    with path.open("w") as file:
        file.writelines(json.dumps(dialogue) + "\n" for dialogue in dialogues)


def append_jsonl(
    filesystem: Any, path: str, records: Iterable[Mapping[str, Any]]
) -> None:
    """Adds lines to a file of a `pyarrow.fs.FileSystem`.

    An object store cannot append: what is there is written again, at once or not at
    all. A line that an interruption has cut off stays one.
    """
    from pyarrow.fs import LocalFileSystem

    new = "".join(json.dumps(record) + "\n" for record in records).encode()
    is_local = isinstance(filesystem, LocalFileSystem)
    old = _end_of(filesystem, path, 1 if is_local else None)
    if old and not old.endswith(b"\n"):
        new = b"\n" + new
    if is_local:
        with filesystem.open_append_stream(path) as file:
            file.write(new)
    else:
        with filesystem.open_output_stream(path) as file:
            file.write(old + new)


def newest_dialogues(trial: Any) -> list[dict[str, Any]]:
    """Those of the last evaluation of a trial of Tune, as far as it kept any."""
    storage = trial.storage
    path = f"{storage.trial_fs_path}/{FILE_NAME}"
    records = []
    for line in _end_of(storage.storage_filesystem, path, NEWEST_BYTES).splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # cut off: by an interruption, or because it is long ago
            continue
    newest = max((r["training_iteration"] for r in records), default=0)
    return [r for r in records if r["training_iteration"] == newest]


def _end_of(filesystem: Any, path: str, num_bytes: int | None) -> bytes:
    """The last bytes of a file, all for None; none if it is not there."""
    info = filesystem.get_file_info(path)
    if not info.is_file:
        return b""
    with filesystem.open_input_file(path) as file:
        if num_bytes is not None:
            file.seek(max(0, info.size - num_bytes))
        return file.read()


def render_text(dialogue: Mapping[str, Any]) -> str:
    """A dialogue as plain text, for a terminal or a table."""
    lines = [headline(dialogue)]
    for message in dialogue["messages"]:
        texts = [_text(message.get("content")), *calls(message)]
        for text in filter(None, texts):
            first, *rest = text.splitlines()
            lines.append(f"{message['role']:>9} | {first}")
            lines += [f"{'':>9} | {line}" for line in rest]
    return encodable("\n".join(lines) + "\n")


def render_html(dialogues: Iterable[Mapping[str, Any]], title: str) -> str:
    """A page that needs nothing else, failures first, a dialogue unfolds on a click."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    dialogues = sorted(dialogues, key=lambda d: (d["success"], d["domain"], d["task"]))
    return templates.get_template("dialogues.html").render(
        title=title, dialogues=dialogues, calls=calls, pieces=pieces
    )


def headline(dialogue: Mapping[str, Any]) -> str:
    """One line on a dialogue as a whole."""
    parts = [
        dialogue["task"],
        "success" if dialogue["success"] else "failure",
        f"reward {dialogue['reward']:g}",
        *(f"{key} {value}" for key, value in dialogue["reward_breakdown"].items()),
        dialogue["reason"],
        f"policy version {dialogue['policy_version']}",
    ]
    return ", ".join(part for part in parts if part)


def calls(message: Mapping[str, Any]) -> list[str]:
    """The tool calls of a message as text."""
    return [
        f"{call['function']['name']}({call['function'].get('arguments') or ''})"
        for call in message.get("tool_calls") or []
    ]


@dataclass(frozen=True)
class Piece:
    """Successive tokens of one version: an uncertain one alone, certain ones together.

    ``probability`` is that of its least probable token.
    """

    text: str
    version: int
    probability: float
    num_tokens: int


def pieces(message: Mapping[str, Any]) -> Iterator[Piece]:
    """What the agent said, cut for display; nothing for others' messages."""
    tokens = zip(
        message.get("tokens", ()), message.get("versions", ()), message.get("logp", ())
    )
    rows = [(text, version, math.exp(logp)) for text, version, logp in tokens]

    def key(numbered: tuple[int, tuple[str, int, float]]) -> tuple[int, int]:
        number, (_, version, probability) = numbered
        return version, -1 if probability >= CERTAIN else number

    for _, group in groupby(enumerate(rows), key=key):
        run = [row for _, row in group]
        yield Piece(
            text="".join(text for text, _, _ in run),
            version=run[0][1],
            probability=min(probability for _, _, probability in run),
            num_tokens=len(run),
        )
