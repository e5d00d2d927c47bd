"""Simulated users and judges served by vLLM on the run's own Ray cluster.

No HTTP: a named actor per replica holds an engine, env runners call it by name. The
first caller starts it, all others of the job share it. Ray restarts an actor that
dies and repeats the calls it had; should its creator be gone, the next caller starts
another one. It ends with the job.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel, Field

from rllib_llm_async.chat.check import check_chat_format
from rllib_llm_async.engine.watchdog import EngineFailedError
from rllib_llm_async.envs.agent_env import EpisodeError, Message, ToolSchema
from rllib_llm_async.envs.chat_model import Answer, as_it_is
from rllib_llm_async.models.resolve import resolve_model
from rllib_llm_async.settings.engine import check_engine_settings
from rllib_llm_async.settings.reading import STRICT

if TYPE_CHECKING:
    from ray.actor import ActorHandle

logger = logging.getLogger(__name__)
#: How often a call goes out again after its actor died (by Ray itself), or after an
#: answer that could not be used.
MAX_RETRIES = 3


class ServedModelSettings(BaseModel):
    """What an experiment file says under ``user`` or ``judge``.

    A user and a judge with equal settings are the same replicas.
    """

    model_config = STRICT

    #: Directory, hub name, or "small_agent".
    served_model: str
    #: Arguments of `vllm.AsyncEngineArgs`.
    engine: dict[str, Any] = {}
    num_replicas: int = Field(1, ge=1)
    #: Of each replica, beside what the trial itself needs.
    num_cpus: float = Field(1, ge=0)
    num_gpus: float = Field(0, ge=0)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, gt=0)
    #: For the model's chat template, e.g. ``{enable_thinking: false}``.
    chat_template_kwargs: dict[str, Any] = {}
    #: What reads its calls and takes out its thoughts, by vLLM's names.
    tool_parser: str = "auto"
    reasoning_parser: str | None = "auto"
    #: One answer, the engine's start and restarts included.
    timeout_seconds: float = Field(900.0, gt=0)


class ModelServer:
    """The actor: one engine, any number of calls at once.

    Args:
        settings: See there.
        seed: Of the engine's sampling.
    """

    def __init__(self, settings: ServedModelSettings, seed: int) -> None:
        from rllib_llm_async.chat import ChatFormat
        from rllib_llm_async.engine.vllm_engine import VLLMEngine

        model = resolve_model(settings.served_model)
        self._format = ChatFormat.from_pretrained(
            model,
            settings.chat_template_kwargs,
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
        )
        self._engine = VLLMEngine(
            model,
            settings.engine,
            temperature=settings.temperature,
            max_response_tokens=settings.max_tokens,
            stop_token_ids=self._format.stop_token_ids,
            seed=seed,
        )
        self._start: asyncio.Future[None] | None = None

    async def complete(
        self, messages: list[Message], tools: list[ToolSchema] | None
    ) -> Answer:
        """The next message, cut off or not.

        Raises:
            ValueError: If the conversation is longer than the model's context.
        """
        if self._start is None or _has_raised(self._start):
            self._start = asyncio.ensure_future(self._start_engine())
        await self._start
        prompt = self._format.as_published(messages, tools or [])
        if len(prompt) >= self._engine.max_model_len:
            raise ValueError(
                f"{len(prompt)} tokens of conversation, engine.max_model_len is "
                f"{self._engine.max_model_len}"
            )
        try:
            output = await self._engine.generate(prompt)
        except EngineFailedError:
            self._make_way()
        message = self._format.parse(output.token_ids, tools or (), prompt=prompt)
        return Answer(message, output.finish_reason, len(prompt), len(output.token_ids))

    async def _start_engine(self) -> None:
        await self._engine.start()
        self._watching = asyncio.ensure_future(self._make_way_after_engine())

    async def _make_way_after_engine(self) -> None:
        try:
            await self._engine.failed()
        except EngineFailedError as error:
            logger.warning("served model starts anew: %s", error)
            self._make_way()

    def _make_way(self) -> NoReturn:
        """Not a leave-taking: Ray starts the actor anew and repeats its calls."""
        self._engine.shutdown()
        os._exit(1)


def _has_raised(done: asyncio.Future[Any]) -> bool:
    return done.done() and (done.cancelled() or done.exception() is not None)


class ServedModel:
    """A `ChatModel` on the cluster.

    Args:
        settings: See there.
        key: Where the settings stand in the experiment file, for error messages.

    Raises:
        ValueError: If the model, its chat template or an engine argument cannot be.
    """

    def __init__(self, settings: ServedModelSettings, key: str) -> None:
        self._settings = settings
        self._key = key
        try:
            check_engine_settings(settings.engine)
            check_chat_format(
                resolve_model(settings.served_model),
                settings.chat_template_kwargs,
                settings.tool_parser,
                settings.reasoning_parser,
            )
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        digest = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
        self._name = f"served_model_{digest}"
        self._servers: dict[int, ActorHandle] = {}
        self._totals = dict.fromkeys(
            ("calls", "failures", "prompt_tokens", "completion_tokens", "seconds"), 0.0
        )

    def metrics(self) -> dict[str, float]:
        """Sums since the start; ``seconds`` waited, the engine's start included."""
        return dict(self._totals)

    def waiting_for(self) -> str | None:
        """Nothing: Ray starts what ends; ``timeout_seconds`` bounds the time of it."""
        return None

    async def complete(
        self,
        messages: list[Message],
        tools: list[ToolSchema] | None = None,
        read: Callable[[Message], Any] = as_it_is,
    ) -> Any:
        """The next assistant message; see `ChatModel`.

        Raises:
            EpisodeError: If no answer comes in time, `MAX_RETRIES` more cannot be used
                either, or the conversation is too long.
        """
        started = time.monotonic()
        try:
            for left in reversed(range(MAX_RETRIES + 1)):
                answer = await asyncio.wait_for(
                    self._ask(messages, tools), self._settings.timeout_seconds
                )
                try:
                    return read(answer.whole())
                except ValueError:
                    if not left:
                        raise
        except Exception as error:
            self._totals["failures"] += 1
            raise EpisodeError(f"{self._key}: {self._describe(error)}") from None
        finally:
            self._totals["calls"] += 1
            self._totals["seconds"] += time.monotonic() - started

    async def _ask(
        self, messages: list[Message], tools: list[ToolSchema] | None
    ) -> Answer:
        answer = await self._call_server(messages, tools)
        self._totals["prompt_tokens"] += answer.num_prompt_tokens
        self._totals["completion_tokens"] += answer.num_completion_tokens
        return answer

    async def _call_server(
        self, messages: list[Message], tools: list[ToolSchema] | None
    ) -> Answer:
        from ray.exceptions import ActorDiedError

        # A conversation stays with its replica, which has the beginning in its cache.
        beginning = json.dumps(messages[:2], sort_keys=True).encode()
        replica = zlib.crc32(beginning) % self._settings.num_replicas
        # The handle is kept: an actor ends when its creator has none any more.
        if replica not in self._servers:
            self._servers[replica] = self._server(replica)
        server = self._servers[replica]
        try:
            return await server.complete.remote(messages, tools)
        except ActorDiedError:  # for good, with the env runner that had started it
            if self._servers.get(replica) is server:
                self._servers[replica] = self._server(replica)
            return await self._servers[replica].complete.remote(messages, tools)

    def _server(self, replica: int) -> ActorHandle:
        """The replica's actor, started if there is none."""
        import ray

        settings = self._settings
        return (
            ray.remote(ModelServer)
            .options(
                name=f"{self._name}_{replica}",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=MAX_RETRIES,
                max_concurrency=10_000,
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                # Beside the trial's placement group, which has no room for it.
                scheduling_strategy="DEFAULT",
            )
            .remote(settings, seed=replica)
        )

    def _describe(self, error: Exception) -> str:
        settings = self._settings
        text = f"model {settings.served_model!r}: "
        if isinstance(error, TimeoutError):
            return text + (
                f"no answer within timeout_seconds={settings.timeout_seconds}; each "
                f"of its {settings.num_replicas} replicas needs {settings.num_cpus} "
                f"CPUs and {settings.num_gpus} GPUs beside the trial's own "
                "(`ray status` says what is free)"
            )
        cause = getattr(error, "cause", None) or error
        return (text + f"{type(cause).__name__}: {cause}")[:500]
