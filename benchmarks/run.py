"""Prints the benchmark table, then each row as a line of JSON.

python -m benchmarks.run [ROW ...]
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from benchmarks import (
    admission,
    attention,
    coordinator_scale,
    generation_vs_raw_vllm,
    learner_vs_bare_torch,
    sharded_vs_single_memory,
    shared_prefix,
    slow_users,
    snapshot_old_vs_recompute,
    weights,
)
from rllib_llm_async.cli.cluster import ray_cluster

ROWS = {
    "generation_vs_raw_vllm": generation_vs_raw_vllm.run,
    "slow_users_vs_instant_ones": slow_users.run,
    "event_loop_stall": slow_users.event_loop_stall,
    "learner_vs_bare_torch": learner_vs_bare_torch.run,
    "snapshot_old_vs_recompute": snapshot_old_vs_recompute.run,
    "snapshot_old_vs_recompute_two_versions": snapshot_old_vs_recompute.two_versions,
    "ewma_update_vs_copy": weights.ewma_update_vs_copy,
    "snapshot_window_vs_copy": weights.snapshot_window_vs_copy,
    "snapshot_work_4_vs_1": weights.snapshot_work_4_vs_1,
    "sharded_vs_single_memory": sharded_vs_single_memory.run,
    "sharded_loading_vs_model_memory": sharded_vs_single_memory.loading,
    "admission_staleness": admission.run,
    "attention_packed_vs_rows": attention.time_packed_vs_rows,
    "attention_packed_vs_rows_memory": attention.memory_packed_vs_rows,
    "shared_prefix_vs_packed": shared_prefix.airline,
    "shared_prefix_vs_packed_retail": shared_prefix.retail,
    "coordinator_cpu_per_update_at_512_runners": coordinator_scale.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    names = parser.parse_args().rows or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}, valid: {', '.join(ROWS)}")
    rows = []
    with ray_cluster():
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(ROWS[name]())
    table = Table("row", "value", "reference", "unit", "ratio")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.value:,.4g}",
            f"{row.reference:,.4g}",
            row.unit,
            f"{row.ratio:.2f}",
        )
    Console().print(table)
    for row in rows:
        print(row.json())


if __name__ == "__main__":
    main()
