"""Where log r_d at lag 0 comes from: engines and trainers that differ in one factor.

Real engines play the same tasks with the same seeds, one engine after the other, and a
trainer scores what they said under the same weights. All is in float32 but the factor
in question, so that its row shows what it adds by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from torch import Tensor

from rllib_llm_async.batch import columns
from rllib_llm_async.connectors.learner import PackEpisodes
from rllib_llm_async.core.discrepancy import Discrepancy, discrepancy
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.env_runners.episodes import EpisodePlayer
from rllib_llm_async.env_runners.llm_env_runner import TOKENS_SPACE
from rllib_llm_async.envs.registry import make_suite
from rllib_llm_async.envs.tasks import tasks_of
from rllib_llm_async.models.causal_lm_policy import CausalLMPolicy

#: Arguments of an engine that its numerics depend on, in no row but their own.
_NUMERICS = ("dtype", "kv_cache_dtype", "quantization", "hf_overrides")
#: Of what a dying engine writes, the line that says why.
_CAUSE = re.compile(r"\b\w+(?:Error|Exception): (?!Engine core init)(.+)")

Episodes = list[SingleAgentEpisode]


class EngineNotAvailableError(Exception):
    """vLLM has no engine with these arguments here; says why."""


@dataclass(frozen=True)
class Factor:
    """What differs from float32 everywhere.

    ``engine`` are arguments of the engine and ``compute_dtype`` is the trainer's;
    ``alone`` has the engine play one episode at a time, ``replay`` the trainer take the
    experts that it chose.
    """

    name: str
    engine: Mapping[str, Any] = field(default_factory=dict)
    compute_dtype: str | None = None
    alone: bool = False
    replay: bool = True


def factors_of(config: Any) -> list[Factor]:
    """What to measure for a config; the last factor is all that it sets, together.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
    """
    configured = config.engine.get("dtype", "bfloat16")
    narrow = "bfloat16" if configured == "float32" else configured
    kv_cache = config.engine.get("kv_cache_dtype", "auto")
    kv_cache = "fp8" if kv_cache == "auto" else kv_cache
    matmuls = {"dtype": narrow, "hf_overrides": {"head_dtype": "float32"}}
    factors = [
        Factor("float32 everywhere"),
        Factor("one request at a time", alone=True),
        Factor(f"engine matmuls, KV cache {narrow}", matmuls),
        Factor(f"engine head {narrow}", {"hf_overrides": {"head_dtype": narrow}}),
        Factor(f"engine KV cache {kv_cache}", {"kv_cache_dtype": kv_cache}),
        Factor("trainer matmuls bfloat16", compute_dtype="bfloat16"),
    ]
    own = {key: config.engine[key] for key in _NUMERICS if key in config.engine}
    whole = Factor("as in the file", {**own, "dtype": configured}, config.compute_dtype)
    if config.replays_routers:
        factors.insert(3, _without_replay(factors[2]))
        factors.append(_without_replay(whole))
    return [*factors, whole]


def _without_replay(factor: Factor) -> Factor:
    name = f"{factor.name}, routing not replayed"
    return replace(factor, name=name, replay=False)


def measure(
    config: Any,
    factors: Sequence[Factor],
    num_episodes: int,
    say: Callable[[str], None],
) -> list[Discrepancy | str]:
    """What comes of each factor: figures, or why there are none here.

    Each engine starts once, then each trainer is loaded once.

    Args:
        config: An `AsyncDecoupledPPOConfig`.
        factors: See `factors_of`.
        num_episodes: That an engine plays for a factor.
        say: Told what is done next.
    """
    of_factors = [_engine_arguments(config, factor.engine) for factor in factors]
    engines = [e for i, e in enumerate(of_factors) if e not in of_factors[:i]]
    played: dict[tuple[int, bool], Episodes] = {}
    reasons: dict[int, str] = {}
    for number, engine in enumerate(engines):
        alike = [f for f, own in zip(factors, of_factors, strict=True) if own == engine]
        say(f"engine {number + 1} of {len(engines)}: {alike[0].name}")
        try:
            ways = {factor.alone for factor in alike}
            of_ways = asyncio.run(_play(config, engine, ways, num_episodes))
            played |= {(number, way): found for way, found in of_ways.items()}
        except EngineNotAvailableError as error:
            reasons[number] = str(error)
    found: dict[int, Discrepancy | str] = {}
    for dtype in sorted({factor.compute_dtype for factor in factors}, key=str):
        say(f"trainer in {dtype or 'float32'}")
        policy = _policy(config, dtype)
        for place, factor in enumerate(factors):
            number = engines.index(of_factors[place])
            if number in reasons:
                found[place] = reasons[number]
            elif factor.compute_dtype == dtype:
                log_r_d = _log_r_d(
                    policy,
                    played[number, factor.alone],
                    config.micro_batch_tokens,
                    replay=factor.replay,
                )
                found[place] = discrepancy(log_r_d)
        del policy
    return [found[place] for place in range(len(factors))]


async def _play(
    config: Any, engine: Mapping[str, Any], ways: set[bool], num_episodes: int
) -> dict[bool, Episodes]:
    """Episodes of one engine, each way: all at once, or (true) one by one.

    Raises:
        EngineNotAvailableError: If it does not start.
    """
    chat_format = config.build_chat_format()
    vllm = VLLMEngine(
        config.model_path,
        engine,
        temperature=config.temperature,
        max_response_tokens=config.max_response_tokens,
        stop_token_ids=chat_format.stop_token_ids,
        seed=0,
        engine_timeout_s=config.engine_timeout_s,
        return_routed_experts=config.replays_routers,
    )
    await _start(vllm)
    try:
        suite = make_suite(config.env, config.env_config)
        spaces = dict.fromkeys(
            (INPUT_ENV_SPACES, DEFAULT_MODULE_ID), (TOKENS_SPACE, TOKENS_SPACE)
        )
        player = EpisodePlayer(
            suite,
            vllm,
            config.build_env_to_module_connector(spaces=spaces),
            config.build_module_to_env_connector(spaces=spaces),
            on_event=lambda *args: None,
            on_env_failure=lambda error: None,
            turn_timeout_s=config.turn_timeout_s,
            episode_timeout_s=config.episode_timeout_s,
        )
        tasks = tasks_of(suite, "train")
        seats = asyncio.Semaphore(config.num_concurrent_episodes)

        async def episode(number: int) -> SingleAgentEpisode:
            async with seats:
                task = tasks[number % len(tasks)]
                return (await player.play(task, seed=number))[0]

        found: dict[bool, Episodes] = {}
        for alone in ways:
            if alone:
                found[alone] = [await episode(n) for n in range(num_episodes)]
            else:
                found[alone] = await asyncio.gather(*map(episode, range(num_episodes)))
        return found
    finally:
        vllm.shutdown()


def _engine_arguments(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the config, in float32 but for the changes."""
    others = {k: value for k, value in config.engine.items() if k not in _NUMERICS}
    return {
        "trust_remote_code": config.trust_remote_code,
        **others,
        "dtype": "float32",
        **changes,
    }


async def _start(engine: VLLMEngine) -> None:
    written: list[str] = []
    try:
        with _written_by_processes(written):
            await engine.start()
    except Exception as error:
        causes = _CAUSE.findall("".join(written))
        reason = causes[0] if causes else str(error)
        raise EngineNotAvailableError(" ".join(reason.split())) from error


@contextlib.contextmanager
def _written_by_processes(to: list[str]) -> Iterator[None]:
    """Keeps what this process and its children write, instead of showing it."""
    sys.stdout.flush()
    before = [(number, os.dup(number)) for number in (1, 2)]
    with tempfile.TemporaryFile() as file:
        for number, _ in before:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, copy in before:
                os.dup2(copy, number)
                os.close(copy)
            file.seek(0)
            to.append(file.read().decode(errors="replace"))


def _policy(config: Any, compute_dtype: str | None) -> CausalLMPolicy:
    # Adapters change nothing before training.
    policy = CausalLMPolicy.from_config(
        {
            **config.get_default_rl_module_spec().model_config,
            "compute_dtype": compute_dtype,
            "lora": None,
        }
    )
    return policy.to("cuda" if torch.cuda.is_available() else "cpu")


def _log_r_d(
    policy: CausalLMPolicy, episodes: Episodes, max_tokens: int, *, replay: bool
) -> Tensor:
    """log pi_old - log mu_old ``[agent tokens]``."""
    pack = PackEpisodes(device=next(policy.parameters()).device)
    batch = pack(rl_module=None, batch={}, episodes=episodes, shared_data={})[
        DEFAULT_MODULE_ID
    ]
    if not replay:
        batch.pop(columns.ROUTED_EXPERTS, None)
    logp = policy.score(batch, None, max_tokens)
    return (logp - batch[columns.BEHAVIOR_LOGP])[batch[columns.LOSS_MASK]]
