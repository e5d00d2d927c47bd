"""A vLLM engine whose weights change in flight and whose outputs carry versions.

`VLLMEngine` is a narrow face of `AsyncLLM`: generate one turn, install a weight
version, report. Behaviour log-probabilities and the version of each token come from
vLLM itself; nothing is recomputed here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import numpy as np

from rllib_llm_async.engine.adapters import Adapter, Adapters
from rllib_llm_async.engine.arrival_check import ExpectedArrival, probe_error
from rllib_llm_async.engine.engine_output import EngineOutput
from rllib_llm_async.engine.vllm_process import kill, start_vllm
from rllib_llm_async.engine.watchdog import EngineFailedError, Watchdog
from rllib_llm_async.engine.whole_weights import WholeWeights
from rllib_llm_async.monitoring.timeline import Timeline

logger = logging.getLogger(__name__)

#: So many turns in a row with log-probabilities that are none: it is the engine.
MAX_UNUSABLE_TURNS = 16


class WeightMismatchError(EngineFailedError):
    """The engine does not sample with the weights that it was sent."""


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
        seed: Seed of the engine's sampling, for requests that have none.
        engine_timeout_s: How long vLLM may take for one step (of generation, or of a
            weight update); None waits for ever.
        name: What its lane of the time line is called.
        weights: What versions are: all weights of the model, unless it is said.
        return_routed_experts: Have turns tell which experts of a mixture their tokens
            went to, where vLLM can.
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
        engine_timeout_s: float | None = 300.0,
        name: str = "engine",
        weights: WholeWeights | Adapters | None = None,
        return_routed_experts: bool = False,
    ) -> None:
        self._model = model
        self._weights: Any = weights or WholeWeights()
        self._engine_args = {**self._weights.engine_arguments, **engine_args}
        self._temperature = temperature
        self._max_response_tokens = max_response_tokens
        self._stop_token_ids = list(stop_token_ids)
        self._seed = seed
        self._return_routed_experts = return_routed_experts
        self._engine_timeout_s = engine_timeout_s
        self._request_numbers = itertools.count()
        self._in_flight: set[str] = set()
        self._uninterrupted = asyncio.Event()
        self._uninterrupted.set()
        self._num_interruptions = 0
        self._num_unusable_turns = 0
        self._paused_at: float | None = None
        self._llm: Any = None
        self._processes: list[BaseProcess] = []
        self._watchdog: Watchdog
        self.version = 0
        self.timeline = Timeline(name)
        self.paused_seconds = 0.0
        self.sync_seconds: list[float] = []
        self.num_generated_tokens = 0
        self.probe_errors: list[float] = []
        self.num_weight_mismatches = 0

    async def start(self) -> None:
        """Starts vLLM's engine process with the initial weights as version 0.

        Raises:
            EngineFailedError: If it dies before it is ready.
        """
        llm, self._processes = start_vllm(
            self._model,
            self._engine_args,
            self._seed,
            return_routed_experts=self._return_routed_experts,
        )
        self._llm = llm
        self._watchdog = Watchdog(
            lambda: llm.errored, llm.is_paused, self._describe, self._engine_timeout_s
        )
        try:
            await self._watchdog.guard(self._get_ready())
        except BaseException:
            self.shutdown()
            raise
        # Not before: reading the fingerprints of a large checkpoint takes its time.
        self._watchdog.expect_answers()

    async def _get_ready(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

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
        await self._weights.get_ready(self._llm)

    @property
    def each(self) -> tuple[VLLMEngine, ...]:
        """Itself, see `engines.Engines`."""
        return (self,)

    def _describe(self) -> str:
        return f"{len(self._in_flight)} requests in flight, version {self.version}"

    @property
    def max_model_len(self) -> int:
        """Longest context, prompt and response together, in tokens."""
        return self._max_model_len

    async def generate(
        self,
        context: Sequence[int],
        on_piece: Callable[[EngineOutput], None] = lambda piece: None,
        seed: int | None = None,
        num_routed: int = 0,
    ) -> EngineOutput:
        """Samples one turn after ``context`` (token ids).

        A turn that `interrupt` stops goes on after the next `install`, where it
        stopped; ``on_piece`` sees each piece of it, the last one included.

        Args:
            context: Prompt, or the episode so far.
            on_piece: See above.
            seed: With one, the tokens depend on it, the context and the weights alone,
                as far as numerics allow, not on the other requests. One seed serves
                all turns of an episode.

        Raises:
            EngineFailedError: If the engine dies or hangs, or gives one turn after the
                other without usable log-probabilities.
        """
        with self._weights.turn() as adapter:
            return await self._watchdog.guard(
                self._turn(list(context), on_piece, seed, adapter, num_routed)
            )

    async def _turn(
        self,
        prompt: list[int],
        on_piece: Callable[[EngineOutput], None],
        seed: int | None,
        adapter: Adapter | None,
        num_routed: int,
    ) -> EngineOutput:
        pieces: list[EngineOutput] = []
        said: list[int] = []
        while True:
            await self._uninterrupted.wait()
            num_interruptions = self._num_interruptions
            params = self._sampling_params
            if said or num_routed or seed is not None:
                params = params.clone()
                params.max_tokens -= len(said)
                params.seed = _seed_at(seed, len(prompt) + len(said))
                params.routed_experts_prompt_start = num_routed
            output = await self._request(prompt + said, params, adapter)
            own = adapter.version if adapter is not None else None
            piece = EngineOutput.of(output.outputs[0], own)
            self._note(piece)
            pieces.append(piece)
            said += piece.token_ids
            if piece.routed_experts is not None:
                num_routed += len(piece.routed_experts)
            on_piece(piece)
            stopped = (
                piece.finish_reason == "abort"
                and num_interruptions != self._num_interruptions
            )
            if not stopped or len(said) == self._max_response_tokens:
                return piece if len(pieces) == 1 else EngineOutput.joined(pieces)

    def _note(self, piece: EngineOutput) -> None:
        self.num_generated_tokens += len(piece.token_ids)
        if piece.token_ids:
            failed = piece.unusable.any()
            self._num_unusable_turns = self._num_unusable_turns + 1 if failed else 0
        if self._num_unusable_turns >= MAX_UNUSABLE_TURNS:
            raise EngineFailedError(
                f"{MAX_UNUSABLE_TURNS} turns in a row hold tokens without a usable "
                f"log-probability, the last ones {piece.logp[piece.unusable][:4]}: "
                f"{self._describe()}"
            )

    async def interrupt(self) -> None:
        """Stops generation until the next `install`.

        When it returns, ``on_piece`` has seen every token sampled so far.

        Raises:
            EngineFailedError: If the engine dies or hangs.
        """
        await self._watchdog.guard(self._interrupt())

    async def _interrupt(self) -> None:
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
        self, version: int, arrived: Any, expected: ExpectedArrival | None
    ) -> None:
        """Has turns go on under new weights, or where each keeps its own, begin so.

        What is paused meanwhile stays in flight. Its KV cache is computed anew under
        the new weights: tokens sampled from now on belong to ``version`` alone.

        Args:
            version: Policy version that the weights carry from now on.
            arrived: What versions consist of, as `EngineSide.at_hand` yields it: the
                path of a safetensors file, unless ``weights`` say otherwise.
            expected: What the trainer says of these weights; None skips the check.

        Raises:
            WeightMismatchError: If they are not what arrives, twice in a row.
            EngineFailedError: If the engine dies or hangs.
        """
        await self._watchdog.guard(self._install(version, arrived, expected))

    async def _install(
        self, version: int, arrived: Any, expected: ExpectedArrival | None
    ) -> None:
        for attempt in (1, 2):
            loaded, problem = await self._exchange(version, arrived, expected)
            if problem is None and expected is not None:
                problem = await self._probe(expected, loaded)
            if problem is None:
                self._weights.accept(loaded)
                self.version = version
                return
            self.num_weight_mismatches += 1
            logger.warning(
                "version %d did not arrive (attempt %d): %s", version, attempt, problem
            )
        raise WeightMismatchError(f"version {version} did not arrive: {problem}")

    async def _exchange(
        self, version: int, arrived: Any, expected: ExpectedArrival | None
    ) -> tuple[Adapter | None, str | None]:
        """Returns what was loaded, and which bits of it are wrong, if any; where turns
        change their version, none goes on before that."""
        start = time.monotonic()
        problem = None
        self.timeline.end("paused")
        with self.timeline.phase("weight transfer"):
            async with self._paused() if self._weights.pauses else nullcontext():
                loaded = await self._weights.load(version, arrived)
                if self._weights.pauses:
                    self.version = version
                if expected is not None:
                    problem = await self._weights.wrong_bits(loaded, version, expected)
        self.sync_seconds.append(time.monotonic() - start)
        return loaded, problem

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Nothing is sampled; requests stay, without their KV cache."""
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        paused = self._paused_at or time.monotonic()
        try:
            yield
        finally:
            await self._llm.resume_generation()
            self._paused_at = None
            self._uninterrupted.set()
            self.paused_seconds += time.monotonic() - paused

    async def _probe(
        self, expected: ExpectedArrival, adapter: Adapter | None
    ) -> str | None:
        """Returns how far the engine's log-probabilities are off, if too far."""
        output = await self._request(expected.probe_tokens, self._probe_params, adapter)
        _, *given = zip(expected.probe_tokens, output.prompt_logprobs, strict=True)
        logp = np.array([entries[token].logprob for token, entries in given])
        self.probe_errors.append(probe_error(expected, logp))
        return self._weights.arrival_check.wrong_numerics(expected, logp)

    async def _request(
        self, prompt: list[int], params: Any, adapter: Adapter | None
    ) -> Any:
        request_id = str(next(self._request_numbers))
        if not self._in_flight:
            self.timeline.begin("generating")
        self._in_flight.add(request_id)
        try:
            outputs = [
                output
                async for output in self._llm.generate(
                    {"prompt_token_ids": prompt},
                    params,
                    request_id,
                    lora_request=adapter.request() if adapter is not None else None,
                )
            ]
        finally:
            self._in_flight.remove(request_id)
            if not self._in_flight:
                self.timeline.end("generating")
        if not outputs:
            raise RuntimeError(f"engine ended request {request_id} without an output")
        return outputs[-1]

    async def failed(self) -> NoReturn:
        """Waits until the engine dies or hangs, also while nobody uses it.

        Raises:
            EngineFailedError: Then.
        """
        await self._watchdog.failed()

    def shutdown(self) -> None:
        """Ends the engine process, whatever state it is in; from any thread."""
        llm, self._llm = self._llm, None
        try:
            if llm is not None:
                self._watchdog.stop()
                if self._watchdog.has_failed:
                    kill(self._processes)  # or vLLM would wait for it to end
                llm.shutdown()
        finally:
            kill(self._processes)
            self._weights.close()


def _seed_at(seed: int | None, position: int) -> int | None:
    """Of the request whose first token stands at ``position`` of the episode."""
    if seed is None:
        return None
    return int(np.random.SeedSequence([seed, position]).generate_state(1)[0])
