"""Versions that are all weights of a model, exchanged in the engine's live model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from rllib_llm_async.core.fingerprint import Fingerprint
from rllib_llm_async.engine.arrival_check import ArrivalCheck, ExpectedArrival
from rllib_llm_async.engine.weight_layout import WeightLayout
from rllib_llm_async.transport.node_weights import NodeWeights
from rllib_llm_async.transport.sides import EngineSide


class WholeWeights:
    """How `VLLMEngine` installs versions; see `adapters.Adapters` for another way.

    Args:
        transport: Brings them; None for files, wherever they come from.
    """

    #: Whether requests stop while a version is exchanged, and go on under it.
    pauses = True

    def __init__(self, transport: EngineSide | None = None) -> None:
        self._transport = transport or NodeWeights("")
        #: Further `vllm.AsyncEngineArgs`.
        self.engine_arguments: Mapping[str, Any] = {
            "weight_transfer_config": {"backend": self._transport.backend}
        }

    async def get_ready(self, llm: Any) -> None:
        """Prepares an engine that has just started."""
        self._llm = llm
        await self._transport.get_ready(llm)
        per_rank = await llm.collective_rpc("rllib_llm_async_checkpoint_fingerprints")
        (checkpoint, *_) = [*filter(None, per_rank), {}]
        layout = WeightLayout(
            {name: Fingerprint(*bits) for name, (_, bits) in checkpoint.items()},
            {name: home for name, (home, _) in checkpoint.items()},
            await self._held_fingerprints(),
        )
        dtype = str(llm.model_config.dtype).removeprefix("torch.")
        #: Compares versions with what the trainer says of them.
        self.arrival_check = ArrivalCheck(dtype, layout, await self._stale_linears(0))

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """What the requests of a turn name besides the model: nothing."""
        return contextlib.nullcontext()

    async def load(self, version: int, arrived: Any) -> None:
        """Exchanges the weights, and has tokens carry ``version``.

        Args:
            version: Which.
            arrived: What the transport's `at_hand` has yielded.
        """
        await self._llm.start_weight_update()
        # vLLM may look at some of them again before it finishes.
        async with self._transport.loading(self._llm, arrived):
            await self._llm.finish_weight_update(weight_version=str(version))

    async def wrong_bits(
        self, loaded: None, version: int, expected: ExpectedArrival
    ) -> str | None:
        """See `ArrivalCheck.wrong_bits`; of what `load` has returned."""
        return self.arrival_check.wrong_bits(
            version,
            expected,
            await self._held_fingerprints(),
            await self._stale_linears(version),
        )

    def accept(self, loaded: None) -> None:
        """It has arrived."""

    def close(self) -> None:
        """Removes what it has written."""

    async def _held_fingerprints(self) -> list[dict[str, Fingerprint]]:
        """Of each rank's live parameters."""
        ranks = await self._llm.collective_rpc("rllib_llm_async_held_fingerprints")
        return [
            {name: Fingerprint(*bits) for name, bits in rank.items()} for rank in ranks
        ]

    async def _stale_linears(self, seed: int) -> list[str]:
        ranks = await self._llm.collective_rpc(
            "rllib_llm_async_stale_linears", args=(seed,)
        )
        return sorted({name for rank in ranks for name in rank})
