"""Dialogues of the demonstrator as text and as token columns, for the warm start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rllib_llm_async.batch import columns
from rllib_llm_async.batch.packing import pack_rows
from rllib_llm_async.chat import ChatFormat
from rllib_llm_async.envs.mini.demonstrations import Demonstration, demonstrate
from rllib_llm_async.envs.mini.mixture import MiniMixtureSuite

if TYPE_CHECKING:
    from rllib_llm_async.models.small_agent.warm_start import WarmStartRecipe

#: Dialogues that the tokenizer is built from.
_NUM_TOKENIZER_TASKS = 1000


def spoken_texts(suite: MiniMixtureSuite) -> Iterator[str]:
    """What the tokenizer shall shorten: messages and the JSON of tool calls."""
    for task in suite.tasks("train")[:_NUM_TOKENIZER_TASKS]:
        for message in demonstrate(suite, task).messages:
            yield f"{message['role']}\n{message['content'] or ''}"
            for call in message.get("tool_calls") or []:
                function = call["function"]
                yield (
                    f'\n{{"name": "{function["name"]}", '
                    f'"arguments": {function["arguments"]}}}\n'
                )


def cloning_batches(
    recipe: WarmStartRecipe,
    suite: MiniMixtureSuite,
    chat_format: ChatFormat,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """One row-packed batch of fresh dialogues per step, train split only.

    Of each step's dialogues every worker tokenises its share.
    """
    tasks = suite.tasks("train")
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        errs = step >= recipe.steps - recipe.erring_steps
        draws = [
            (tasks[rng.integers(len(tasks))], int(rng.integers(2**31)))
            for _ in range(recipe.dialogues_per_step)
        ]
        sequences = [
            tokenize(
                chat_format,
                demonstrate(
                    suite,
                    task,
                    shortcut_rate=errs * recipe.shortcut_rate,
                    slip_rate=errs * recipe.slip_rate,
                    seed=seed,
                ),
            )
            for task, seed in draws[rank::world_size]
        ]
        yield pack_rows(sequences, min_row_tokens=640)


def tokenize(
    chat_format: ChatFormat, demonstration: Demonstration
) -> dict[str, np.ndarray]:
    """One dialogue as token columns; the loss is on what the agent says.

    Tokens are put together as in a rollout, turn by turn.
    """
    messages = demonstration.messages
    said = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    tokens: list[int] = []
    mask: list[bool] = []
    last_turn: list[int] = []
    for turn, index in enumerate(said):
        if turn == 0:
            seen = chat_format.start(messages[:index], demonstration.tools)
        else:
            seen = chat_format.extend(
                messages[said[turn - 1] + 1 : index], last_turn=last_turn
            )
        last_turn = chat_format.assistant_turn(messages[index])
        tokens += seen + last_turn
        mask += [False] * len(seen) + [True] * len(last_turn)
    return {
        columns.TOKENS: np.asarray(tokens, dtype=np.int64),
        columns.LOSS_MASK: np.asarray(mask),
        columns.POSITION_IDS: np.arange(len(tokens)),
    }
