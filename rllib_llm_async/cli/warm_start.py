"""Builds a small agent like the bundled one, and measures it on held-out tasks.

python -m rllib_llm_async.cli.warm_start --out DIR [--steps N]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rllib_llm_async.cli.cluster import ray_cluster
from rllib_llm_async.models.small_agent.warm_start import WarmStartRecipe, warm_start


def held_out_success(model: Path) -> dict[str, float]:
    """By domain, the share of 256 test tasks that a model solves at temperature 1."""
    from rllib_llm_async import AsyncDecoupledPPOConfig

    config = (
        AsyncDecoupledPPOConfig()
        .environment("mini")
        .training(
            model=str(model),
            num_concurrent_episodes=128,
            engine={"dtype": "float32", "max_model_len": 512, "max_num_seqs": 128},
        )
    )
    algorithm = config.build_algo()
    try:
        domains = algorithm.evaluate_tasks(num_trials=1)["domains"]
    finally:
        algorithm.stop()
    return {domain: round(row["avg@1"], 3) for domain, row in domains.items()}


def main() -> None:
    """Command line entry."""
    defaults = WarmStartRecipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    arguments = parser.parse_args()
    recipe = WarmStartRecipe(steps=arguments.steps, seed=arguments.seed)
    with ray_cluster():
        metrics = warm_start(recipe, arguments.out)
        print("measuring success on held-out tasks ...", flush=True)
        success = held_out_success(arguments.out)
    told = {**asdict(recipe), "held_out_success": success}
    (arguments.out / "warm_start.json").write_text(json.dumps(told, indent=2) + "\n")
    print(
        f"warm start: wrote {arguments.out}, loss {metrics['loss']:.4f}, "
        f"{metrics['seconds']:.0f} s"
    )
    print("held-out success:", ", ".join(f"{d} {x}" for d, x in success.items()))


if __name__ == "__main__":
    main()
