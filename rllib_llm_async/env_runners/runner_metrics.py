"""What an env runner counts, in RLlib's `MetricsLogger`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils import force_list

from rllib_llm_async import result_keys
from rllib_llm_async.engine.vllm_engine import VLLMEngine
from rllib_llm_async.envs.agent_env import ReportsMetrics, is_reward

logger = logging.getLogger(__name__)


class RunnerMetrics:
    """Thread-safe: the loop counts, RLlib's calls read.

    Args:
        runner: The env runner, whose ``metrics`` and ``config`` are used.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._lock = threading.RLock()
        self._reported_totals: dict[str, float] = {}
        self._has_warned = False
        self._last: dict[str, list[float]] = {}
        self._callbacks = [cls() for cls in force_list(runner.config.callbacks_class)]
        #: When episodes began, of `time.monotonic`.
        self.began_at = time.monotonic()

    def count(self, key: str, number: int) -> None:
        """Adds to a counter that only grows."""
        with self._lock:
            self._runner.metrics.log_value(key, int(number), reduce="lifetime_sum")

    def call_back(self, which: str, episode: SingleAgentEpisode, env: Any) -> None:
        """RLlib's callbacks, for the episodes of training and evaluation alike."""
        runner = self._runner
        more: dict = {"prev_episode_chunks": []} if which == "on_episode_end" else {}
        with self._lock:
            make_callback(
                which,
                callbacks_objects=self._callbacks,
                callbacks_functions=getattr(runner.config, f"callbacks_{which}"),
                kwargs={
                    "episode": episode,
                    "env_runner": runner,
                    "metrics_logger": runner.metrics,
                    "env": env,
                    "env_index": 0,
                    "rl_module": None,
                    **more,
                },
            )

    def take(self, engines: Sequence[VLLMEngine], suite: Any) -> Any:
        """Everything since the last call, reduced."""
        totals = self._totals_of(suite) if isinstance(suite, ReportsMetrics) else {}
        for key, counts in (
            (
                result_keys.NUM_GENERATED_TOKENS_LIFETIME,
                [engine.num_generated_tokens for engine in engines],
            ),
            (
                result_keys.NUM_WEIGHT_MISMATCHES,
                [engine.num_weight_mismatches for engine in engines],
            ),
        ):
            totals[key] = sum(counts)
        metrics = self._runner.metrics
        with self._lock:
            for key, total in totals.items():
                metrics.log_value(
                    key,
                    total - self._reported_totals.get(key, 0),
                    reduce="lifetime_sum",
                )
            # Not replaced: a suite may leave out a key for once.
            self._reported_totals |= totals
            # There before the first event.
            for key in (result_keys.NUM_ENV_FAILURES, result_keys.NUM_ENGINE_FAILURES):
                self.count(key, 0)
            paused = sum(engine.paused_seconds for engine in engines) / len(engines)
            metrics.log_value(
                result_keys.GENERATION_PAUSED_FRACTION,
                paused / max(time.monotonic() - self.began_at, 1e-9),
                window=1,
            )
            for key, lists in (
                (result_keys.WEIGHT_SYNC_SECONDS, [e.sync_seconds for e in engines]),
                (result_keys.WEIGHT_PROBE_ERROR, [e.probe_errors for e in engines]),
            ):
                values = [value for of_engine in lists for value in of_engine]
                # RLlib makes a NaN of an update in which nothing arrived.
                for value in values or self._last.get(key, []):
                    metrics.log_value(key, value, window=20)
                if values:
                    self._last[key] = values[-1:]
                for of_engine in lists:
                    of_engine.clear()
            for engine in engines:
                engine.timeline.log_to(metrics)
            return metrics.reduce()

    def _totals_of(self, suite: ReportsMetrics) -> dict[str, float]:
        """What the suite has counted; what it cannot tell ends no env runner."""
        try:
            told = dict(suite.metrics())
        except Exception as error:  # whatever a class of somebody else's raises
            self._warn_once(suite, f"fails ({error!r})")
            return {}
        totals = {
            key: float(total)
            for key, total in told.items()
            if isinstance(key, str) and is_reward(total)
        }
        if left_out := [*map(repr, told.keys() - totals.keys())]:
            self._warn_once(
                suite, f"gives no finite number for {', '.join(sorted(left_out))}"
            )
        return totals

    def _warn_once(self, suite: ReportsMetrics, fault: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            name = type(suite).__name__
            logger.warning("env: %s.metrics() %s: left out", name, fault)
