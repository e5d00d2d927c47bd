"""Asynchronous against synchronous with users that take 50 to 400 ms to answer.

    python -m benchmarks.async_vs_sync [--updates N] [--out FILE]

trains the bundled agent with ``max_staleness`` 0, 1, 2, 4 and 8 under three sources and
plots samples per hour and success on held-out tasks after as many updates. Learner and
engine have a core each, as each has devices of its own on a cluster: on cores that both
share the one would take what the other leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.figures import write_figure
from benchmarks.row import Row, say
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.example import EXAMPLES_DIR
from rllib_llm_async.cli.experiment_file import build_config, load_experiments
from rllib_llm_async.envs.agent_env import Message, Step
from rllib_llm_async.envs.mini.suite import MiniEnv
from rllib_llm_async.envs.mini_tau2 import MiniTau2Suite
from rllib_llm_async.envs.registry import register_suite, suite_names

USER_SECONDS = (0.05, 0.4)
SOURCES = ("snapshot_old", "current_recompute", "ppo_ewma_async")
BOUNDS = (0, 1, 2, 4, 8)
#: Updates at the start of which the time is not taken.
SETTLING = 4
#: What each works on; phases that overlap with these are left out.
LEARNER_PHASES, ENGINE_PHASES = ("old_logits", "training"), ("generating",)
#: Of the short form: source, bound and updates.
SHORT = ("snapshot_old", 2, 12)
NUM_TEST_TASKS = 128


class WaitingEnv(MiniEnv):
    """Its user takes a while for each answer; tools answer at once."""

    async def step(self, message: Message) -> Step:
        if not message.get("tool_calls"):
            await asyncio.sleep(random.uniform(*USER_SECONDS))
        return self.step_now(message)


class WaitingSuite(MiniTau2Suite):
    """The bundled domains with users that take `USER_SECONDS`."""

    name = "mini_tau2_waiting"

    def make(self) -> WaitingEnv:
        return WaitingEnv(self)


@dataclass(frozen=True)
class Outcome:
    """Of one run; ``success`` on held-out tasks, ``staleness`` mean in versions.

    ``learner_busy`` and ``engine_busy`` are the shares of the time in which they work:
    once one of them always does, nothing is left for asynchrony to gain.
    """

    source: str
    max_staleness: int
    samples_per_hour: float
    success: float
    staleness: float
    learner_busy: float
    engine_busy: float


def train(source: str, max_staleness: int, num_updates: int) -> Outcome:
    """Trains from the start; takes the time after the first updates."""
    algorithm = _config(source, max_staleness).build_algo()
    results = []
    try:
        for update in range(num_updates):
            if update == SETTLING:
                start = time.perf_counter()
            results.append(algorithm.train())
        seconds = time.perf_counter() - start
        means = algorithm.evaluate_tasks(num_trials=1, num_tasks=NUM_TEST_TASKS)
    finally:
        algorithm.stop()
    timed = results[SETTLING:]
    samples = len(timed) * algorithm.config.episodes_per_update
    phases = [result["phase_seconds"] for result in timed]
    return Outcome(
        source,
        max_staleness,
        samples_per_hour=3600 * samples / seconds,
        success=means["env_runners"]["success_rate"],
        staleness=fmean(
            result["learners"]["default_policy"]["staleness_mean"] for result in timed
        ),
        learner_busy=_busy(phases, "learner", LEARNER_PHASES) / seconds,
        engine_busy=_busy(phases, "engine", ENGINE_PHASES) / seconds,
    )


def _busy(phases: list[dict], kind: str, names: tuple[str, ...]) -> float:
    """Seconds; a short iteration may end before a runner has reported its own."""
    return sum(p.get(kind, {}).get(name, 0.0) for p in phases for name in names)


def _config(source: str, max_staleness: int) -> Any:
    if WaitingSuite.name not in suite_names():
        register_suite(WaitingSuite.name, WaitingSuite)
    (experiment,) = load_experiments(EXAMPLES_DIR / "mini_tau2_ppo_ewma_async.yaml")
    return (
        build_config(experiment)
        .environment(WaitingSuite.name, env_config={"domains": ["airline"]})
        .learners(num_learners=1, num_cpus_per_learner=1)
        .evaluation(evaluation_interval=None)
        .training(old_logprob_source=source, max_staleness=max_staleness)
    )


@functools.cache
def _short() -> tuple[Outcome, Outcome]:
    source, bound, num_updates = SHORT
    return train(source, bound, num_updates), train(source, 0, num_updates)


def run() -> Row:
    """Samples per hour of the short form."""
    ours, synchronous = _short()
    return Row(
        "async_vs_sync",
        ours.samples_per_hour,
        "samples/h",
        synchronous.samples_per_hour,
        ours.samples_per_hour / synchronous.samples_per_hour,
    )


def success() -> Row:
    """Success on held-out tasks after it."""
    ours, synchronous = _short()
    return Row(
        "async_vs_sync_success",
        ours.success,
        "share",
        synchronous.success,
        ours.success / synchronous.success,
    )


def figure(outcomes: list[Outcome]) -> Any:
    """Samples per hour and success over the bound, a line per source."""
    from plotly.subplots import make_subplots

    titles = {"samples_per_hour": "samples per hour", "success": "held-out success"}
    plot = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    colors = ("#0072B2", "#E69F00", "#009E73")
    for source, color in zip(SOURCES, colors, strict=True):
        own = [o for o in outcomes if o.source == source]
        for column, field in enumerate(titles, start=1):
            plot.add_scatter(
                x=[str(o.max_staleness) for o in own],
                y=[getattr(o, field) for o in own],
                name=source,
                legendgroup=source,
                showlegend=column == 1,
                line={"color": color, "width": 3},
                marker={"size": 9},
                row=1,
                col=column,
            )
    for column, title in enumerate(titles.values(), start=1):
        plot.update_xaxes(title_text="max_staleness", row=1, col=column)
        plot.update_yaxes(title_text=title, rangemode="tozero", row=1, col=column)
    return plot.update_layout(plot_bgcolor="white", width=1100, height=420)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("async_vs_sync.html"))
    arguments = parser.parse_args()
    if arguments.updates <= SETTLING:
        parser.error(f"--updates: more than {SETTLING}, the time of which is not taken")
    outcomes = []
    with ray_cluster():
        for source in SOURCES:
            for bound in BOUNDS:
                say(f"{source}, bound {bound}")
                outcomes.append(train(source, bound, arguments.updates))
                print(json.dumps(asdict(outcomes[-1])), flush=True)
    write_figure(figure(outcomes), arguments.out)


if __name__ == "__main__":
    main()
