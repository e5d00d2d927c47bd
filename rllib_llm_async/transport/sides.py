"""The two sides of the way that weights take: at the first learner, at each engine.

Whatever the way is, a version is copied while the learner waits, and brought to an
engine when that is free for it: each takes the newest, none waits for another, one that
is new gets the whole. What arrived is then compared with what the trainer says of it,
see `engine.arrival_check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

#: vLLM's name of what `engine.vllm_plugin` registers.
FILE_BACKEND = "safetensors_file"

#: Yields a version's tensors by name, the same names every time.
Weights = Callable[[], Iterable[tuple[str, Tensor]]]


def travels_in(shape: Sequence[int], dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a tensor goes to engines of a dtype: of matrices it is theirs.

    All else takes no room. Engines keep some of it in float32 (by the routing bias of a
    mixture some tokens choose other experts once it is rounded) and round the rest.
    """
    is_matrix = sum(size > 1 for size in shape) > 1
    return dtype if is_matrix else torch.float32


class TrainerSide(Protocol):
    """Holds the version that engines can have, and the next one; see `Outbox`."""

    def stage(self, weights: Weights) -> None:
        """Copies a version's weights; when it returns they may change."""

    @property
    def staged(self) -> Mapping[str, Tensor]:
        """The tensors of the staged version."""

    def show(self, serial: int, check: Callable[[], None] = lambda: None) -> Any:
        """Lets engines have the staged version; returns what `at_hand` asks for."""

    def close(self) -> None:
        """Gives up everything."""


class EngineSide(Protocol):
    """Brings versions to one engine; see `NodeWeights`.

    ``backend`` is vLLM's name of the half that is in its workers.
    """

    backend: str

    async def get_ready(self, llm: Any) -> None:
        """Prepares for an engine that has just started, an `AsyncLLM`."""

    def at_hand(self, shipment: Any) -> AbstractAsyncContextManager[Any]:
        """Yields these weights for `loading`; they stay as they are meanwhile.

        Raises:
            SupersededError: If they are gone, since newer ones come.
        """

    def loading(self, llm: Any, arrived: Any) -> AbstractAsyncContextManager[None]:
        """Within vLLM's weight update: loads them, and on exit lets go of them."""

    def doubt(self, shipment: Any) -> bool:
        """Has them brought otherwise where an engine found other weights.

        Returns:
            False if there is no other way.
        """

    def close(self) -> None:
        """Gives up everything."""
