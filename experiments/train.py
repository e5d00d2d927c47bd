"""One run, in a process of its own: trains, evaluates, prints what it found as JSON.

python -m experiments.train EXPERIMENT RUN
"""

from __future__ import annotations

import fcntl
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm

from experiments.mixture import small_mixture
from experiments.plan import EXPERIMENTS, FILES, SMALL_MIXTURE, Run
from rllib_llm_async import result_keys
from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.cli.example import EXAMPLES_DIR
from rllib_llm_async.cli.experiment_file import (
    apply_settings,
    build_config,
    load_experiments,
)
from rllib_llm_async.core.strata import (
    ENTROPY_BUCKETS,
    LAG_BUCKETS,
    entropy_name,
    lag_name,
)
from rllib_llm_async.result_keys import at_entropy, at_lag

NUM_TRIALS = 4
LOCK = Path(tempfile.gettempdir()) / "rllib_llm_async_experiment.lock"
#: Columns of an update, by the learner's result key.
COLUMNS = {
    "staleness": result_keys.STALENESS_MEAN,
    "log_r_d": result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN,
    "log_r_s": result_keys.STALENESS_LOG_RATIO_ABS_MEAN,
    "log_r_d_square": result_keys.DISCREPANCY_LOG_RATIO_SQUARE_MEAN,
    "log_r_s_square": result_keys.STALENESS_LOG_RATIO_SQUARE_MEAN,
    "effective_samples": result_keys.TOTAL_EFFECTIVE_SAMPLE_SIZE,
    "kept": result_keys.TRAIN_INFER_MASK,
    "clipped": result_keys.PPO_CLIP_FRACTION,
    "entropy": result_keys.ENTROPY,
    "gradient_norm": result_keys.GRADIENT_NORM,
    "gradient_cosine": result_keys.GRADIENT_COSINE,
    "ewma_decay": result_keys.EWMA_DECAY,
    "ewma_resets": result_keys.EWMA_NUM_RESETS,
    "old_logprob_seconds": result_keys.OLD_LOGPROB_SECONDS,
    "snapshot_bytes": result_keys.SNAPSHOT_BYTES,
}
#: Columns of the tokens of one lag, or of one entropy.
STRATUM_COLUMNS = {
    "share": result_keys.TOKEN_SHARE,
    "kept": result_keys.TRAIN_INFER_MASK,
    "clipped": result_keys.PPO_CLIP_FRACTION,
    "log_r_d": result_keys.DISCREPANCY_LOG_RATIO_ABS_MEAN,
    "log_r_s": result_keys.STALENESS_LOG_RATIO_ABS_MEAN,
    "log_r_d_square": result_keys.DISCREPANCY_LOG_RATIO_SQUARE_MEAN,
    "log_r_s_square": result_keys.STALENESS_LOG_RATIO_SQUARE_MEAN,
}


def config_of(run: Run) -> Any:
    """The validated config: the domain's tuned file with the run's settings."""
    (experiment,) = load_experiments(EXAMPLES_DIR / FILES[run.domain])
    settings = dict(run.settings)
    if settings.get("model") == SMALL_MIXTURE:
        settings["model"] = str(small_mixture())
    apply_settings(
        experiment.config,
        {
            **settings,
            "seed": run.seed,
            "evaluation_interval": None,
            "log_gradients": True,
        },
    )
    return build_config(experiment)


def train(run: Run) -> dict[str, Any]:
    """Trains from the start, then plays all test tasks `NUM_TRIALS` times.

    Returns:
        ``run``: figures of the whole run; ``updates``, ``lags`` and ``entropies``: rows
        of columns.
    """
    with ExitStack() as at_the_end:
        with machine_to_itself():
            started = time.monotonic()
            algorithm = config_of(run).build_algo()
            at_the_end.callback(algorithm.stop)
            began = time.monotonic()
            results = list(updates(algorithm, run))
            seconds = time.monotonic() - began
        evaluated = algorithm.evaluate_tasks(num_trials=NUM_TRIALS)
    learners = [result["learners"]["default_policy"] for result in results]
    figures = evaluated["domains"][run.domain]
    runners = results[-1]["env_runners"]
    num_samples = run.num_updates * algorithm.config.episodes_per_update
    return {
        "run": {
            "minutes": round((time.monotonic() - started) / 60, 1),
            **{key: figures[key] for key in ("avg@4", "avg@4_se", "pass@4", "pass^4")},
            "samples_per_hour": 3600 * num_samples / seconds,
            "multi_version_share": runners[
                result_keys.NUM_MULTI_VERSION_EPISODES_LIFETIME
            ]
            / num_samples,
            **compared(learners),
        },
        "updates": [
            {
                "update": number,
                "success": result["env_runners"][result_keys.SUCCESS_RATE],
                **columns(learner, COLUMNS),
            }
            for number, (result, learner) in enumerate(zip(results, learners), 1)
        ],
        "lags": lags(learners),
        "entropies": entropies(learners),
    }


@contextmanager
def machine_to_itself() -> Iterator[None]:
    """Waits until no other run of this machine is within: they would be slow together,
    and what they say of their speed would be wrong."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def updates(algorithm: Algorithm, run: Run) -> Iterator[dict[str, Any]]:
    """The result of each, when it has been said how well it went."""
    for number in range(1, run.num_updates + 1):
        result = algorithm.train()
        success = result["env_runners"][result_keys.SUCCESS_RATE]
        print(
            f"{run.name}: update {number} of {run.num_updates}, success {success:.3f}",
            file=sys.stderr,
            flush=True,
        )
        yield result


def columns(learner: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, float]:
    """The columns that an update has."""
    return {c: float(learner[key]) for c, key in keys.items() if key in learner}


def lags(learners: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each lag that occurs, means over its tokens, whenever they were trained on."""
    names = map(lag_name, LAG_BUCKETS)
    return _strata(learners, "lag", {n: partial(at_lag, n) for n in names})


def entropies(learners: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same of tokens that the policy is equally uncertain about."""
    names = map(entropy_name, ENTROPY_BUCKETS)
    return _strata(learners, "entropy", {n: partial(at_entropy, n) for n in names})


def _strata(
    learners: list[Mapping[str, Any]],
    column: str,
    strata: Mapping[str, Callable[[str], str]],
) -> list[dict[str, Any]]:
    rows = []
    for name, key_of in strata.items():
        keys = {c: key_of(key) for c, key in STRATUM_COLUMNS.items()}
        updates = [columns(learner, keys) for learner in learners]
        updates = [u for u in updates if u.get("share", 0.0) > 0.0]
        if not updates:
            continue
        row: dict[str, Any] = {column: name}
        row["share"] = sum(update["share"] for update in updates) / len(learners)
        for c in STRATUM_COLUMNS:
            if c != "share":
                # The clip is counted among the tokens that the mask keeps.
                of = ("share", "kept") if c == "clipped" else ("share",)
                weights = [prod(update[w] for w in of) for update in updates]
                total = sum(w * u[c] for w, u in zip(weights, updates))
                row[c] = total / sum(weights) if sum(weights) else 0.0
        rows.append(row)
    return rows


def compared(learners: list[Mapping[str, Any]]) -> dict[str, float]:
    """Of each source that was compared with the exact one, its mean error."""
    prefix, suffix = result_keys.compared("", "")[:-1], result_keys.COMPARED_ERROR
    keys = [k for k in learners[-1] if k.startswith(prefix) and k.endswith(suffix)]
    errors = {}
    for key in keys:
        values = [float(learner.get(key, math.nan)) for learner in learners]
        known = [value for value in values if not math.isnan(value)]
        if known:
            errors[f"error_{key.split('/')[1]}"] = fmean(known)
    return errors


def main() -> None:
    _, experiment, name = sys.argv
    (run,) = (r for r in EXPERIMENTS[experiment].runs if r.name == name)
    with ray_cluster():
        print(json.dumps(train(run)))


if __name__ == "__main__":
    main()
