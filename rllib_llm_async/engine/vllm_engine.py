"""A vLLM engine whose weights change in flight and whose outputs carry versions.

`VLLMEngine` is a narrow face of `AsyncLLM`: generate one turn, install a weight
version, report. Behaviour log-probabilities and the version of each token come from
vLLM itself; nothing is recomputed here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_llm_async import NO_REGISTRATION
from rllib_llm_async.core.fingerprint import Fingerprint
from rllib_llm_async.engine.arrival_check import (
    ArrivalCheck,
    ExpectedArrival,
    probe_error,
)
from rllib_llm_async.engine.weight_layout import WeightLayout
from rllib_llm_async.monitoring.timeline import Timeline

logger = logging.getLogger(__name__)

#: KV cache on CPU, unless ``engine: {kv_cache_memory_bytes: ...}`` says otherwise.
CPU_KV_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineOutput:
    """One generated turn, token by token.

    ``logp`` float32 and ``versions`` int64 have the length of ``token_ids``.
    """

    token_ids: list[int]
    logp: np.ndarray
    versions: np.ndarray
    finish_reason: str


class WeightMismatchError(RuntimeError):
    """The engine does not sample with the weights that it was sent."""


def _prepare_environment(on_cpu: bool) -> None:
    """Sets what vLLM's engine process has to find in its environment.

    On CPU one worker shares the engine's process, torch.compile of a small sampling
    helper is skipped (it costs tens of seconds once and gains nothing), and cores are
    not pinned, because several engines on a host would choose the same. What the user
    has set stays.
    """
    settings = {
        NO_REGISTRATION: "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    if on_cpu:
        settings |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _cpu_arguments() -> dict[str, Any]:
    """Defaults on CPU: one worker in the engine's process, nothing compiled (see
    `_prepare_environment`), a cache of a fixed size.

    vLLM's own default of it wants nine tenths of a NUMA node's memory to be free, which
    trainers and other engines on the machine share.
    """
    arguments: dict[str, Any] = {
        "distributed_executor_backend": "uni",
        "enforce_eager": True,
    }
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return arguments


class VLLMEngine:
    """One `AsyncLLM` with versioned, verified, in-flight weight updates.

    Use from a single asyncio loop, the one that `start` ran on.

    Args:
        model: Directory or hub name of the initial weights.
        engine_args: Further `vllm.AsyncEngineArgs`.
        temperature: Sampling temperature; log-probabilities are those of the
            distribution really sampled from.
        max_response_tokens: Upper bound of tokens in one turn.
        stop_token_ids: Tokens that end a turn.
        seed: Seed of the engine's sampling.
        name: What its lane of the time line is called.
    """

    def __init__(
        self,
        model: str,
        engine_args: Mapping[str, Any],
        *,
        temperature: float,
        max_response_tokens: int,
        stop_token_ids: Sequence[int],
        seed: int,
        name: str = "engine",
    ) -> None:
        self._model = model
        self._engine_args = dict(engine_args)
        self._temperature = temperature
        self._max_response_tokens = max_response_tokens
        self._stop_token_ids = list(stop_token_ids)
        self._seed = seed
        self._request_numbers = itertools.count()
        self._in_flight: set[str] = set()
        self._uninterrupted = asyncio.Event()
        self._uninterrupted.set()
        self._num_interruptions = 0
        self._paused_at: float | None = None
        self._llm: Any = None
        self.version = 0
        self.timeline = Timeline(name)
        self.paused_seconds = 0.0
        self.sync_seconds: list[float] = []
        self.num_generated_tokens = 0
        self.probe_errors: list[float] = []
        self.num_weight_mismatches = 0

    async def start(self) -> None:
        """Starts vLLM's engine process with the initial weights as version 0."""
        from vllm.platforms import current_platform

        _prepare_environment(on_cpu=current_platform.is_cpu())
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.config import WeightTransferConfig
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        # Importing this registers the transfer backend where vLLM validates its name.
        from rllib_llm_async.engine import vllm_plugin

        args = {
            **(_cpu_arguments() if current_platform.is_cpu() else {}),
            "disable_log_stats": True,
            "seed": self._seed,
            **self._engine_args,
        }
        self._llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=self._model,
                logprobs_mode="processed_logprobs",
                worker_extension_cls=(
                    f"{vllm_plugin.__name__}.{vllm_plugin.EngineWorkerExtension.__name__}"
                ),
                weight_transfer_config=WeightTransferConfig(
                    backend=vllm_plugin.BACKEND
                ),
                **args,
            )
        )
        await self._llm.update_weight_version("0")
        self._sampling_params = SamplingParams(
            temperature=self._temperature,
            max_tokens=self._max_response_tokens,
            stop_token_ids=self._stop_token_ids,
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._probe_params = SamplingParams(
            temperature=1.0,
            max_tokens=1,
            prompt_logprobs=0,  # of the prompt's own tokens alone
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._max_model_len = self._llm.model_config.max_model_len
        self._arrival_check = await self._create_arrival_check()

    async def _create_arrival_check(self) -> ArrivalCheck:
        per_rank = await self._llm.collective_rpc(
            "rllib_llm_async_checkpoint_fingerprints"
        )
        (checkpoint, *_) = [*filter(None, per_rank), {}]
        layout = WeightLayout(
            {name: Fingerprint(*bits) for name, (_, bits) in checkpoint.items()},
            {name: home for name, (home, _) in checkpoint.items()},
            await self._held_fingerprints(),
        )
        dtype = str(self._llm.model_config.dtype).removeprefix("torch.")
        return ArrivalCheck(dtype, layout, await self._stale_linears(0))

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

    @property
    def max_model_len(self) -> int:
        """Longest context, prompt and response together, in tokens."""
        return self._max_model_len

    async def generate(
        self,
        context: Sequence[int],
        on_piece: Callable[[EngineOutput], None] = lambda piece: None,
    ) -> EngineOutput:
        """Samples one turn after ``context`` (token ids).

        A turn that `interrupt` stops goes on after the next `install`, where it
        stopped; ``on_piece`` sees each piece of it, the last one included.
        """
        prompt = list(context)
        pieces: list[EngineOutput] = []
        while True:
            await self._uninterrupted.wait()
            num_interruptions = self._num_interruptions
            said = [token for piece in pieces for token in piece.token_ids]
            params = self._sampling_params
            if said:
                params = params.clone()
                params.max_tokens -= len(said)
            output = await self._request(prompt + said, params)
            piece = self._read(output.outputs[0])
            pieces.append(piece)
            on_piece(piece)
            stopped = (
                piece.finish_reason == "abort"
                and num_interruptions != self._num_interruptions
            )
            if not stopped or len(piece.token_ids) == params.max_tokens:
                break
        if len(pieces) == 1:
            return piece
        return EngineOutput(
            said + piece.token_ids,
            np.concatenate([p.logp for p in pieces]),
            np.concatenate([p.versions for p in pieces]),
            "length" if piece.finish_reason == "abort" else piece.finish_reason,
        )

    def _read(self, completion: Any) -> EngineOutput:
        token_ids = list(completion.token_ids)
        if not token_ids:
            empty = np.zeros(0, np.float32), np.zeros(0, np.int64)
            return EngineOutput([], *empty, completion.finish_reason)
        self.num_generated_tokens += len(token_ids)
        versions = np.full(len(token_ids), -1, dtype=np.int64)
        for span in completion.weight_versions or ():
            versions[span.start : span.end] = int(span.version)
        logp = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
        if completion.logprobs.token_ids != token_ids:
            raise RuntimeError(
                "engine returned log-probabilities of other tokens than it sampled"
            )
        return EngineOutput(token_ids, logp, versions, completion.finish_reason)

    async def interrupt(self) -> None:
        """Stops generation until the next `install`.

        When it returns, ``on_piece`` has seen every token sampled so far.
        """
        self._uninterrupted.clear()
        self._num_interruptions += 1
        self._paused_at = time.monotonic()
        self.timeline.begin("paused")
        await self._llm.pause_generation(mode="abort", clear_cache=True)
        while self._in_flight:
            # What was on its way to the scheduler when it paused would wait there.
            await self._llm.abort(list(self._in_flight))
            await asyncio.sleep(0.005)

    async def install(
        self, version: int, path: Path, expected: ExpectedArrival | None
    ) -> None:
        """Swaps in the weights of ``path`` under requests that stay in flight.

        Their KV cache is recomputed under the new weights: tokens sampled from now
        on belong to ``version`` alone.

        Args:
            version: Policy version that the weights carry from now on.
            path: Safetensors file with checkpoint-format weights.
            expected: What the trainer says of these weights; None skips the check.

        Raises:
            WeightMismatchError: If they are not what arrives, twice in a row.
        """
        for attempt in (1, 2):
            problem = await self._swap(version, path, expected)
            if problem is None and expected is not None:
                problem = await self._probe(expected)
            if problem is None:
                return
            self.num_weight_mismatches += 1
            logger.warning(
                "version %d did not arrive (attempt %d): %s", version, attempt, problem
            )
        raise WeightMismatchError(f"version {version} did not arrive: {problem}")

    async def _swap(
        self, version: int, path: Path, expected: ExpectedArrival | None
    ) -> str | None:
        """Returns which bits are wrong, if any; no token is sampled before that."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        start = time.monotonic()
        self.timeline.end("paused")
        self.timeline.begin("weight transfer")
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        paused = self._paused_at or time.monotonic()
        try:
            await self._llm.start_weight_update()
            await self._llm.update_weights(
                WeightTransferUpdateRequest(update_info={"path": str(path)})
            )
            await self._llm.finish_weight_update(weight_version=str(version))
            self.version = version
            if expected is None:
                return None
            return self._arrival_check.wrong_bits(
                version,
                expected,
                await self._held_fingerprints(),
                await self._stale_linears(version),
            )
        finally:
            await self._llm.resume_generation()
            self._paused_at = None
            self._uninterrupted.set()
            self.timeline.end("weight transfer")
            end = time.monotonic()
            self.paused_seconds += end - paused
            self.sync_seconds.append(end - start)

    async def _probe(self, expected: ExpectedArrival) -> str | None:
        """Returns how far the engine's log-probabilities are off, if too far."""
        output = await self._request(expected.probe_tokens, self._probe_params)
        _, *given = zip(expected.probe_tokens, output.prompt_logprobs, strict=True)
        logp = np.array([entries[token].logprob for token, entries in given])
        self.probe_errors.append(probe_error(expected, logp))
        return self._arrival_check.wrong_numerics(expected, logp)

    async def _request(self, prompt: list[int], params: Any) -> Any:
        request_id = str(next(self._request_numbers))
        if not self._in_flight:
            self.timeline.begin("generating")
        self._in_flight.add(request_id)
        try:
            outputs = [
                output
                async for output in self._llm.generate(
                    {"prompt_token_ids": prompt}, params, request_id
                )
            ]
        finally:
            self._in_flight.remove(request_id)
            if not self._in_flight:
                self.timeline.end("generating")
        if not outputs:
            raise RuntimeError(f"engine ended request {request_id} without an output")
        return outputs[-1]

    async def check_health(self) -> None:
        """Raises if the engine process is dead."""
        await self._llm.check_health()

    def shutdown(self) -> None:
        """Ends the engine process."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None
