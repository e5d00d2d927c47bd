"""Prints the benchmark table, then each row as a line of JSON.

python -m benchmarks.run [ROW ...]
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from benchmarks import (
    admission,
    async_vs_sync,
    attention,
    coordinator_scale,
    env_runner_scaling,
    generation_vs_raw_vllm,
    learner_vs_bare_torch,
    publishing,
    samples_vs_trl,
    sharded_vs_single_memory,
    shared_prefix,
    slow_users,
    snapshot_old_vs_recompute,
    weights,
)
from benchmarks.row import MissingPackageError, say
from rllib_llm_async.cli.cluster import ray_cluster

ROWS = {
    "generation_vs_raw_vllm": generation_vs_raw_vllm.run,
    "slow_users_vs_instant_ones": slow_users.run,
    "event_loop_stall": slow_users.event_loop_stall,
    "learner_vs_bare_torch": learner_vs_bare_torch.run,
    "samples_vs_trl": samples_vs_trl.run,
    "async_vs_sync": async_vs_sync.run,
    "async_vs_sync_success": async_vs_sync.success,
    "env_runner_scaling_2": env_runner_scaling.two,
    "env_runner_scaling_4": env_runner_scaling.four,
    "snapshot_old_vs_recompute": snapshot_old_vs_recompute.run,
    "snapshot_old_vs_recompute_two_versions": snapshot_old_vs_recompute.two_versions,
    "snapshot_old_vs_recompute_tokens": snapshot_old_vs_recompute.tokens,
    "snapshot_old_vs_recompute_tokens_two_versions": (
        snapshot_old_vs_recompute.tokens_two_versions
    ),
    "ewma_update_vs_copy": weights.ewma_update_vs_copy,
    "snapshot_window_vs_copy": weights.snapshot_window_vs_copy,
    "snapshot_work_4_vs_1": weights.snapshot_work_4_vs_1,
    "publish_block_vs_copy": publishing.block_vs_copy,
    "publish_memory_vs_payload": publishing.memory_vs_payload,
    "publish_memory_vs_payload_two_nodes": publishing.memory_vs_payload_two_nodes,
    "publish_bytes_vs_full": publishing.bytes_vs_full,
    "publish_lora_bytes_vs_full": publishing.lora_bytes_vs_full,
    "sharded_vs_single_memory": sharded_vs_single_memory.run,
    "sharded_loading_vs_model_memory": sharded_vs_single_memory.loading,
    "learner_memory_vs_size": sharded_vs_single_memory.predicted,
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
    missing: dict[str, MissingPackageError] = {}
    with ray_cluster():
        for name in names:
            say(name)
            try:
                rows.append(ROWS[name]())
            except MissingPackageError as error:
                missing[name] = error
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
    for name, error in missing.items():
        print(f"{name}: {error}")
    for row in rows:
        print(row.json())


if __name__ == "__main__":
    main()
