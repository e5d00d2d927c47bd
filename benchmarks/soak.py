"""A job of hours with a fault a minute: does anything grow, does it go on learning?

    python -m benchmarks.soak --minutes 120 --out soak

trains `tuned_examples/mini_tau2_ppo_ewma_async.yaml` with RLlib's own API and has
processes killed and stopped while it goes on. Writes a row an update to OUT.jsonl and
the curves to OUT.html, and prints how much each grew per hour after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.figures import write_figure
from rllib_llm_async import result_keys
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.example import EXAMPLES_DIR
from rllib_llm_async.cli.experiment_file import build_config, load_experiments

YAML = EXAMPLES_DIR / "mini_tau2_ppo_ewma_async.yaml"
#: Share of the time before anything is compared.
WARM_UP = 0.25
#: How long a stopped process stands still.
STOPPED_SECONDS = 20.0
#: What is done to which process, by a part of its name.
FAULTS = {
    "runner killed": ("ray::LLMEnvRunner", signal.SIGKILL),
    "engine killed": ("VLLM::EngineCore", signal.SIGKILL),
    "coordinator killed": ("ray::Coordinator", signal.SIGKILL),
    "runner stopped": ("ray::LLMEnvRunner", signal.SIGSTOP),
    "engine stopped": ("VLLM::EngineCore", signal.SIGSTOP),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--fault-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    (experiment,) = load_experiments(YAML)
    rows: list[dict[str, Any]] = []
    with ray_cluster():
        algorithm = build_config(experiment).build_algo()
        done = threading.Event()
        faults: list[str] = []
        threading.Thread(
            target=inject,
            args=(arguments.fault_seconds, arguments.seed, done, faults),
            daemon=True,
        ).start()
        try:
            end = time.monotonic() + 60 * arguments.minutes
            with arguments.out.with_suffix(".jsonl").open("w") as file:
                while time.monotonic() < end:
                    rows.append(row(algorithm.train(), faults))
                    file.write(json.dumps(rows[-1]) + "\n")
                    file.flush()
                    print(
                        f"{rows[-1]['minutes']:7.1f} min  update {len(rows)}  success "
                        f"{rows[-1]['success']:.3f}  memory "
                        f"{rows[-1]['memory_mb']:.0f} MB  faults {len(faults)}",
                        flush=True,
                    )
        finally:
            done.set()
            algorithm.stop()
    report(rows, arguments.out)


def inject(
    seconds: float, seed: int, done: threading.Event, happened: list[str]
) -> None:
    """A fault every so many seconds, on processes of this run alone."""
    rng = random.Random(seed)
    while not done.wait(seconds):
        name = rng.choice(list(FAULTS))
        part, number = FAULTS[name]
        found = [process for process in own_processes() if part in title(process)]
        if not found:
            continue  # still being replaced
        victim = rng.choice(found)
        try:
            victim.send_signal(number)
            happened.append(name)
            if number == signal.SIGSTOP:
                done.wait(STOPPED_SECONDS)
                victim.send_signal(signal.SIGCONT)
        except psutil.NoSuchProcess:
            continue


def own_processes() -> Iterator[psutil.Process]:
    """This process and all that it started, Ray's included."""
    yield psutil.Process()
    yield from psutil.Process().children(recursive=True)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        return ""


def row(result: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """What may grow, and whether it learns, after an update."""
    memory, threads, files, count = 0, 0, 0, 0
    for process in own_processes():
        try:
            # Shared pages once: what a process alone would give back.
            memory += process.memory_full_info().uss
            threads += process.num_threads()
            files += process.num_fds()
            count += 1
        except psutil.Error:
            continue
    runners = result["env_runners"]
    return {
        "minutes": result["time_total_s"] / 60,
        "success": runners[result_keys.SUCCESS_RATE],
        "staleness": result["learners"]["default_policy"][result_keys.STALENESS_MEAN],
        "multi_version_episodes": runners[
            result_keys.NUM_MULTI_VERSION_EPISODES_LIFETIME
        ],
        "memory_mb": memory / 2**20,
        "driver_mb": psutil.Process().memory_full_info().uss / 2**20,
        "threads": threads,
        "open_files": files,
        "processes": count,
        "shared_memory_files": len(os.listdir("/dev/shm")),
        "disk_mb": shutil.disk_usage(tempfile.gettempdir()).used / 2**20,
        "num_faults": len(faults),
        "identity_error": result[result_keys.LEDGER_IDENTITY_ERROR],
    }


def report(rows: list[dict[str, Any]], out: Path) -> None:
    """Prints slopes per hour after the warm-up, and draws every column.

    Slopes are those of updates at whose end every process was there: one that is being
    replaced takes its memory with it.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    minutes = np.array([r["minutes"] for r in rows])
    processes = np.array([r["processes"] for r in rows])
    later = (minutes > WARM_UP * minutes[-1]) & (processes == np.median(processes))
    columns = [key for key in rows[0] if key != "minutes"]
    figure = make_subplots(rows=len(columns), cols=1, subplot_titles=columns)
    for number, key in enumerate(columns, 1):
        values = np.array([float(r[key]) for r in rows])
        figure.add_trace(
            go.Scatter(x=minutes, y=values, showlegend=False), row=number, col=1
        )
        (slope, _), covariance = np.polyfit(
            minutes[later] / 60, values[later], 1, cov=True
        )
        mean, error = values[later].mean(), np.sqrt(covariance[0, 0])
        print(
            f"{key:24} mean {mean:10.2f}  per hour {slope:+10.3f}"
            f"  ({slope / mean:+.2%} +- {error / mean:.2%})"
            if mean
            else f"{key:24} 0"
        )
    figure.update_layout(height=220 * len(columns))
    write_figure(figure, out.with_suffix(".html"))


if __name__ == "__main__":
    main()
