"""Versions that are LoRA adapters beside a base model that stays as it was loaded.

vLLM keeps adapters by number, and each request names one. In flight there is a single
adapter, whose matrices are exchanged: all requests go on under the new ones, and their
KV cache is computed anew. Per version each is an adapter of its own: a turn names the
newest when it begins and keeps it, nothing is paused, and vLLM's prefix cache, which
tells adapters apart by name and path, keeps what each of them has computed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rllib_llm_async.core.fingerprint import Fingerprint, add_fingerprints
from rllib_llm_async.engine.arrival_check import ArrivalCheck, ExpectedArrival
from rllib_llm_async.engine.weight_layout import Fingerprints, Part
from rllib_llm_async.models.served_adapters import ServedAdapters, room_for
from rllib_llm_async.monitoring.owned_folders import SHARED_MEMORY, OwnedFolder

#: More versions than so many are never computed with in one batch: room for an
#: adapter of its own is taken in every layer.
MAX_SLOTS = 8
#: As vLLM and PEFT call them.
_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter that vLLM knows, or comes to know by the first request.

    ``version``: of all tokens of its requests; None where they tell it themselves.
    """

    number: int
    name: str
    folder: Path
    version: int | None

    def request(self, *, anew: bool = False) -> Any:
        """How a request to vLLM names it; ``anew`` reads the folder once more."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.name, self.number, str(self.folder), load_inplace=anew)


class Adapters:
    """How `VLLMEngine` installs versions, in place of `WholeWeights`.

    The base model is version 0 until another one comes: an adapter without matrices.

    Args:
        served: What the model's adapters are.
        per_version: Whether each version is an adapter of its own.
        max_staleness: Versions that turns can be behind the newest.
    """

    def __init__(
        self, served: ServedAdapters, *, per_version: bool, max_staleness: int
    ) -> None:
        self.pauses = not per_version
        self._rank = served.rank
        # One for the version that comes, while turns of all others are under way.
        slots = min(max_staleness + 2, MAX_SLOTS) if per_version else 1
        self.engine_arguments: Mapping[str, Any] = {
            "enable_lora": True,
            "max_lora_rank": room_for(served.rank),
            "max_loras": slots,
            "max_cpu_loras": slots,
            "lora_target_modules": list(served.layers),
        }
        self._files = OwnedFolder("adapters", SHARED_MEMORY)
        self._turns: Counter[Adapter] = Counter()
        #: Adapters that are not the newest, whose files are there.
        self._older: set[Adapter] = set()
        self._unnamed: set[Adapter] = set()
        self._numbers = itertools.count(1)

    async def get_ready(self, llm: Any) -> None:
        """Prepares an engine that has just started."""
        self._llm = llm
        dtype = str(llm.model_config.dtype).removeprefix("torch.")
        self.arrival_check = ArrivalCheck(dtype, AdapterLayout(), [])
        self._newest = self._new(0)
        save_file(self._nothing(), self._newest.folder / _TENSORS)
        await llm.add_lora(self._newest.request())

    @contextlib.contextmanager
    def turn(self) -> Iterator[Adapter]:
        """The adapter of a turn that begins; its files stay until the turn ends."""
        adapter = self._newest
        self._turns[adapter] += 1
        try:
            yield adapter
        finally:
            self._turns[adapter] -= 1

    async def load(self, version: int, path: Path) -> Adapter:
        """Brings a version's matrices into the engine.

        Args:
            version: Which.
            path: Safetensors file with what `adapter_weights` yields.
        """
        adapter = self._newest if self.pauses else self._new(version)
        self._older.add(adapter)  # should it not arrive
        # Whole at once: vLLM may read the folder of an adapter whenever it needs it.
        copy = adapter.folder / f"unfinished_{_TENSORS}"
        shutil.copyfile(path, copy)
        copy.rename(adapter.folder / _TENSORS)
        await self._llm.add_lora(adapter.request(anew=self.pauses))
        if self.pauses:
            await self._llm.update_weight_version(str(version))
        return adapter

    async def wrong_bits(
        self, loaded: Adapter, version: int, expected: ExpectedArrival
    ) -> str | None:
        """See `ArrivalCheck.wrong_bits`; of what `load` has returned."""
        ranks = await self._llm.collective_rpc(
            "rllib_llm_async_adapter_fingerprints",
            args=(
                *(loaded.name, loaded.number, str(loaded.folder)),
                list(expected.fingerprints),
            ),
        )
        held = [
            {name: Fingerprint(*bits) for name, bits in rank.items()} for rank in ranks
        ]
        return self.arrival_check.wrong_bits(version, expected, held, [])

    def accept(self, loaded: Adapter) -> None:
        """It has arrived: turns that begin from now on name it."""
        self._older.add(self._newest)
        self._older.remove(loaded)
        self._newest = loaded
        self._remove_unnamed()

    def close(self) -> None:
        """Removes what it has written."""
        self._files.cleanup()

    def _nothing(self) -> dict[str, torch.Tensor]:
        """An adapter of a layer that no model has: vLLM wants one at least."""
        layer = (
            f"base_model.model.none.{self.engine_arguments['lora_target_modules'][0]}"
        )
        return {f"{layer}.lora_{m}.weight": torch.zeros(1, 1) for m in "AB"}

    def _new(self, version: int) -> Adapter:
        number = next(self._numbers)
        folder = Path(self._files.name, str(number))
        folder.mkdir()
        config = {
            "peft_type": "LORA",
            "r": self._rank,
            "lora_alpha": self._rank,  # the factor is in the matrices
            "target_modules": self.engine_arguments["lora_target_modules"],
        }
        (folder / _CONFIG).write_text(json.dumps(config))
        if self.pauses:
            return Adapter(number, "policy", folder, None)
        # vLLM takes equal names for one adapter, and a restored run publishes a
        # version's number once more.
        return Adapter(number, f"policy@{version}/{number}", folder, version)

    def _remove_unnamed(self) -> None:
        """Adapters that no turn has named since the version before came.

        A turn that is given up ends here before it does in vLLM, which may need the
        files for one more step. What it has of them itself it forgets as others come.
        """
        unnamed = {adapter for adapter in self._older if not self._turns[adapter]}
        for adapter in unnamed & self._unnamed:
            shutil.rmtree(adapter.folder)
            self._older.remove(adapter)
            del self._turns[adapter]
        self._unnamed = unnamed


class AdapterLayout:
    """Which matrices of an adapter an engine has to hold: each, and no others."""

    #: As of a `WeightLayout`.
    not_comparable: Sequence[str] = ()

    def num_compared(self, published: Fingerprints) -> int:
        """Of how many matrices `differences` names some."""
        return len(published)

    def not_published(self, published: Fingerprints) -> list[str]:
        """Engines hold nothing that is not published."""
        return []

    def differences(
        self, published: Fingerprints, ranks: Sequence[Fingerprints]
    ) -> list[str]:
        """Names of matrices whose bits at the engine are not the published ones.

        Args:
            published: By name.
            ranks: For each rank of the engine what its layers compute with.
        """
        held = {name for rank in ranks for name, bits in rank.items() if any(bits)}
        return sorted(
            {n for n, bits in published.items() if not _is_held(n, bits, ranks)}
            | (held - published.keys())
        )


def _is_held(name: str, bits: Fingerprint, ranks: Sequence[Fingerprints]) -> bool:
    """On each rank, or on all together, which then may hold a part of each row.

    Of more ranks than KV heads several hold the same head.
    """
    part = Part(name, (name,), (name,))
    shares = replace(part, whole_on_each_rank=False, keeps_rows=False)
    num_ranks = sum(name in rank for rank in ranks)
    return part.is_held(bits, ranks) or any(
        shares.is_held(add_fingerprints([bits] * copies), ranks)
        for copies in range(1, num_ranks)
        if num_ranks % copies == 0
    )
