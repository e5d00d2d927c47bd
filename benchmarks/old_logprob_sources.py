"""All sources on the same batches of the main job: error, masks, cost, memory.

The tuned example runs with exact old log-probabilities and a wider staleness bound;
every other source is computed beside it on the batches as they come.

    python -m benchmarks.old_logprob_sources [--iterations N] [--max-staleness S]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS
from rich.console import Console
from rich.table import Table

import rllib_llm_async
from rllib_llm_async import result_keys
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.experiment_file import build_config, load_experiments
from rllib_llm_async.old_logprobs import source_names

TUNED = (
    Path(rllib_llm_async.__file__).parent
    / "tuned_examples"
    / "mini_tau2_ppo_ewma_async.yaml"
)
EXACT = "snapshot_old"
#: Of a window of five versions of Qwen3-4B.
PUBLISHED = {"snapshot_old": "40 GB, 25 s", "ppo_ewma_async": "7.9 GB, 8 s"}
FIELDS = (
    "log_ratio_abs_error_mean",
    "mask_disagreement",
    "r_d_r_s_correlation",
)


def tuned_config(max_staleness: int) -> Any:
    """The tuned example, with all sources beside the exact one."""
    (experiment,) = load_experiments(TUNED)
    config = build_config(experiment).training(
        old_logprob_source=EXACT,
        compare_sources=others(),
        max_staleness=max_staleness,
    )
    return config.evaluation(evaluation_interval=None)


def others() -> list[str]:
    """All sources but the exact one that trains."""
    return [name for name in source_names() if name != EXACT]


def measure(config: Any, iterations: int) -> list[dict[str, float | str]]:
    """One row per source: medians over the iterations with stale tokens."""
    algorithm = config.build_algo()
    results = []
    try:
        for iteration in range(iterations):
            learner = algorithm.train()[LEARNER_RESULTS][DEFAULT_MODULE_ID]
            print(
                f"iteration {iteration + 1}/{iterations}, staleness "
                f"{learner['staleness_mean']:.2f}",
                file=sys.stderr,
                flush=True,
            )
            if learner["staleness_mean"] > 0:
                results.append(learner)
    finally:
        algorithm.stop()
    return [row_of(name, results) for name in [EXACT, *config.compare_sources]]


def row_of(name: str, results: list[dict[str, Any]]) -> dict[str, float | str]:
    prefix = f"compare/{name}"
    seconds = result_keys.OLD_LOGPROB_SECONDS if name == EXACT else f"{prefix}/seconds"
    nbytes = result_keys.SNAPSHOT_BYTES if name == EXACT else f"{prefix}/nbytes"

    def median(key: str) -> float:
        return statistics.median(result[key] for result in results)

    return {
        "name": f"old_logprob_sources/{name}",
        **{field: median(f"{prefix}/{field}") for field in FIELDS},
        "seconds": median(seconds),
        "passes": statistics.median(
            result[seconds] / result[result_keys.COMPARE_ONE_PASS_SECONDS]
            for result in results
        ),
        "nbytes": median(nbytes),
    }


def print_costs(rows: list[dict[str, float | str]]) -> None:
    """What each source of pi_old costs in an update."""
    table = Table("source", "seconds", "passes", "memory", "published for Qwen3-4B")
    for row in rows:
        name = _source(row)
        table.add_row(
            name,
            f"{row['seconds']:.3f}",
            f"{row['passes']:.2f}",
            f"{float(row['nbytes']) / 1e9:.3f} GB",
            PUBLISHED.get(name, ""),
        )
    Console(width=140).print(table)


def _source(row: dict[str, float | str]) -> str:
    return str(row["name"]).partition("/")[2]


def _num_weights(config) -> int:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model_path)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--max-staleness", type=int, default=4)
    arguments = parser.parse_args()
    config = tuned_config(arguments.max_staleness)
    weights = 4 * _num_weights(config)
    with ray_cluster():
        rows = measure(config, arguments.iterations)
    for row in rows:
        row["weight_copies"] = float(row.pop("nbytes")) / weights
    table = Table(
        "source", "error", "masks differ", "corr(r_d, r_s)", "passes", "weight copies"
    )
    for row in rows:
        table.add_row(
            _source(row),
            f"{row['log_ratio_abs_error_mean']:.2e}",
            f"{row['mask_disagreement']:.2%}",
            f"{row['r_d_r_s_correlation']:+.2f}",
            f"{row['passes']:.2f}",
            f"{row['weight_copies']:.2f}",
        )
    Console().print(table)
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
