"""A model behind any OpenAI-compatible endpoint: a provider's, or `vllm serve`."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import time
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator

from rllib_llm_async.chat.reasoning import without_thoughts
from rllib_llm_async.envs.agent_env import EpisodeError, Message, ToolSchema
from rllib_llm_async.envs.chat_model import Answer, as_it_is
from rllib_llm_async.envs.retries import PassingError, Retries
from rllib_llm_async.settings.reading import STRICT

#: Below 500: the request may be right and only come at the wrong time.
PASSING_STATUS = (408, 409, 425, 429)


class ChatEndpointSettings(BaseModel):
    """What an experiment file says under ``user`` or ``judge``.

    The key itself is never a setting: ``api_key_env`` names the environment variable
    that holds it on every node, or is null for an endpoint that takes none.
    """

    model_config = STRICT

    model: str
    #: The provider that the `openai` client takes by itself, if null.
    base_url: str | None = Field(None, repr=False)
    api_key_env: str | None = Field("OPENAI_API_KEY", repr=False)
    #: Of one attempt, from the request to the end of the answer.
    timeout_seconds: float = Field(60.0, gt=0)
    #: Per call, at growing intervals, after a time-out, a lost connection, a passing
    #: error status or an answer that cannot be used. A whole endpoint that is down is
    #: waited for and does not count.
    max_retries: int = Field(10, ge=0)
    #: Calls under way at once from one env runner.
    max_concurrency: int = Field(64, gt=0)
    #: The endpoint's own, if null.
    temperature: float | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, gt=0)
    #: Further fields of the request, e.g. ``chat_template_kwargs`` of `vllm serve`.
    extra_body: dict[str, Any] = {}
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    price_per_million_completion_tokens: float = Field(0.0, ge=0)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be a URL such as http://localhost:8000/v1")
            if parts.username or parts.password:
                raise ValueError("must hold no password; use api_key_env")
        return value

    @field_validator("api_key_env")
    @classmethod
    def _check_api_key_env(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
            raise ValueError(
                "must be the name of the environment variable that holds the key, "
                "not the key"
            )
        return value


class ChatEndpoint:
    """A `ChatModel` behind an endpoint.

    Args:
        settings: See there.
        key: Where the settings stand in the experiment file, for error messages.

    Raises:
        ValueError: If the environment variable of the key is not set.
    """

    def __init__(self, settings: ChatEndpointSettings, key: str) -> None:
        self._settings = settings
        self._key = key
        variable = settings.api_key_env
        if variable is not None and not os.environ.get(variable):
            raise ValueError(
                # Not by name: that may be the key, by mistake.
                f"{key}.api_key_env: the environment variable of this name "
                "(OPENAI_API_KEY, if none is given) is not set; set it on every node, "
                "name another one, or write `api_key_env: null` for an endpoint that "
                "takes no key"
            )
        # Takes a moment, which the first call on the loop should not.
        importlib.import_module("openai")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retries: list[Retries] = []
        self._totals = dict.fromkeys(
            (
                "calls",
                "failures",
                "prompt_tokens",
                "completion_tokens",
                "cost",
                "seconds",
            ),
            0.0,
        )

    def metrics(self) -> dict[str, float]:
        """Sums since the start; ``seconds`` waited, places in the queue included.

        ``down_seconds`` are those in which no call was answered, so that all waited.
        """
        return {
            **self._totals,
            "retries": float(sum(r.num_retries for r in self._retries)),
            "down_seconds": sum(r.down_seconds for r in self._retries),
        }

    def waiting_for(self) -> str | None:
        """The endpoint, while it is down; see `ChatModel`."""
        return self._retries[-1].waiting_for() if self._retries else None

    async def complete(
        self,
        messages: list[Message],
        tools: list[ToolSchema] | None = None,
        read: Callable[[Message], Any] = as_it_is,
    ) -> Any:
        """The next assistant message; see `ChatModel`.

        Raises:
            EpisodeError: After the last retry, or for a request that is refused.
        """
        self._bind_to_running_loop()
        started = time.monotonic()
        try:
            return await self._retries[-1].call(
                lambda: self._attempt(messages, tools, read)
            )
        except PassingError as error:
            self._totals["failures"] += 1
            raise EpisodeError(f"{self._key}: {error}") from None
        except EpisodeError:
            self._totals["failures"] += 1
            raise
        finally:
            self._totals["calls"] += 1
            self._totals["seconds"] += time.monotonic() - started

    def _bind_to_running_loop(self) -> None:
        """Client and semaphore belong to one loop; a suite is made outside of it."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            from openai import AsyncOpenAI

            settings, self._loop = self._settings, loop
            variable = settings.api_key_env
            self._client = AsyncOpenAI(
                api_key=os.environ[variable] if variable else "none",
                base_url=settings.base_url,
                timeout=None,  # httpx counts from one piece to the next; see `_attempt`
                max_retries=0,  # see `Retries`
            )
            self._places = asyncio.Semaphore(settings.max_concurrency)
            name = f"{self._key}: endpoint {self._client.base_url}"
            self._retries.append(Retries(name, settings.max_retries, self._probe))

    async def _probe(self) -> None:
        """As any other call, on a conversation that no answer can be wrong for."""
        await self._attempt([{"role": "user", "content": "Hello."}], None, as_it_is)

    async def _attempt(
        self,
        messages: list[Message],
        tools: list[ToolSchema] | None,
        read: Callable[[Message], Any],
    ) -> Any:
        from openai import APIConnectionError, APIStatusError

        seconds = self._settings.timeout_seconds
        try:
            async with self._places, asyncio.timeout(seconds):
                body = await self._post(messages, tools)
            answer = read_answer(body)
        except TimeoutError:
            text = self._describe(f"timed out: no answer within {seconds} s")
            raise PassingError(text, of_endpoint=True) from None
        except APIStatusError as error:
            text = self._describe(error)
            if error.status_code not in PASSING_STATUS and error.status_code < 500:
                raise EpisodeError(f"{self._key}: {text}") from None
            raise PassingError(
                text,
                of_endpoint=True,
                retry_after=_seconds(error.response.headers.get("retry-after")),
            ) from None
        except (APIConnectionError, ValidationError) as error:
            raise PassingError(self._describe(error), of_endpoint=True) from None
        self._count_tokens(answer)
        try:
            return read(answer.whole())
        except ValueError as error:
            raise PassingError(self._describe(error)) from None

    async def _post(
        self, messages: list[Message], tools: list[ToolSchema] | None
    ) -> str:
        import httpx2

        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "tools": tools or None,
        }
        # The client's typed method takes 1 ms more of the loop for each call.
        response = await self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            body={
                **{key: value for key, value in body.items() if value is not None},
                **settings.extra_body,
            },
        )
        return response.text

    def _count_tokens(self, answer: Answer) -> None:
        """Also of one that cannot be used: it is paid for."""
        settings, totals = self._settings, self._totals
        num_read, num_written = answer.num_prompt_tokens, answer.num_completion_tokens
        totals["prompt_tokens"] += num_read
        totals["completion_tokens"] += num_written
        totals["cost"] += (
            num_read * settings.price_per_million_prompt_tokens
            + num_written * settings.price_per_million_completion_tokens
        ) / 1e6

    def _describe(self, error: Exception | str) -> str:
        """One line about a failed call; some servers quote the key that they refuse."""
        if isinstance(error, ValidationError):
            fault = error.errors(include_url=False)[0]
            where = ".".join(map(str, fault["loc"]))
            text = f"invalid answer: {where} {fault['msg']}"
        elif isinstance(error, str):
            text = error
        else:
            text = f"{type(error).__name__}: {error}"
        secret = os.environ.get(self._settings.api_key_env or "")
        if secret:
            text = text.replace(secret, "***")
        return f"model {self._settings.model!r}: {text}"[:500]


def _seconds(header: str | None) -> float | None:
    """Of ``Retry-After``, where it is a number and not a date."""
    try:
        return max(float(header or ""), 0.0)
    except ValueError:
        return None


# The parts of an answer that are used. Servers add fields of their own.


class _Function(BaseModel):
    name: str
    arguments: str


class _ToolCall(BaseModel):
    id: str
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None

    def as_dict(self) -> Message:
        said = None if self.content is None else without_thoughts(self.content)
        message: Message = {"role": "assistant", "content": said}
        if self.tool_calls:
            message["tool_calls"] = [
                {"type": "function", **call.model_dump()} for call in self.tool_calls
            ]
        return message


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


def read_answer(body: str) -> Answer:
    """The first answer in what an endpoint says, whatever that is.

    Raises:
        pydantic.ValidationError: If there is no message in it.
    """
    completion = _Completion.model_validate_json(body)
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Answer(
        choice.message.as_dict(),
        choice.finish_reason,
        usage.prompt_tokens,
        usage.completion_tokens,
    )
