"""The two stores of weights on a transformer's shapes: what an update costs."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.row import Row, compare
from rllib_llm_async.core import EWMAWeights, SnapshotStore

#: Projection matrices of a few Qwen3-0.6B layers.
SHAPES = [(2048, 1024), (1024, 1024), (3072, 1024), (1024, 3072)] * 4
WINDOW = 5
LEARNING_RATE = 1e-6


def ewma_update_vs_copy(repeats: int = 10) -> Row:
    """Seconds of one EWMA update against one copy of the same float32 weights."""
    weights = _weights(torch.float32)
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    ewma = EWMAWeights(weights, decay=0.5)

    def update() -> float:
        start = time.perf_counter()
        ewma.update(weights)
        return time.perf_counter() - start

    def copy() -> float:
        start = time.perf_counter()
        for name, tensor in weights.items():
            copies[name].copy_(tensor)
        return time.perf_counter() - start

    return compare("ewma_update_vs_copy", "s", update, copy, repeats)


def snapshot_window_vs_copy() -> Row:
    """Bytes of a window of bfloat16 versions against one copy of them.

    Adam-like steps at the learning rate 1e-6 on a float32 master copy.
    """
    master = _weights(torch.float32)
    store = SnapshotStore()
    for version in range(WINDOW):
        store.put(version, {name: t.bfloat16() for name, t in master.items()})
        for tensor in master.values():
            tensor += LEARNING_RATE * torch.randn_like(tensor).clamp(-1, 1)
    one_copy = sum(2 * tensor.numel() for tensor in master.values())
    return Row(
        "snapshot_window_vs_copy",
        store.nbytes,
        "bytes",
        one_copy,
        store.nbytes / one_copy,
    )


def snapshot_work_4_vs_1(repeats: int = 5) -> Row:
    """Seconds of an update's work on snapshots with four old versions against one.

    That is to walk through those that score and to store the next one; bfloat16, steps
    as above.
    """
    measures = [_snapshot_work(window) for window in (4, 1)]
    return compare("snapshot_work_4_vs_1", "s", *measures, repeats)


def _snapshot_work(window: int) -> Callable[[], float]:
    master, store = _weights(torch.float32), SnapshotStore()

    def step() -> dict[str, torch.Tensor]:
        for tensor in master.values():
            tensor += LEARNING_RATE * torch.randn_like(tensor).clamp(-1, 1)
        return {name: tensor.bfloat16() for name, tensor in master.items()}

    for version in range(window + 1):
        store.put(version, step())

    def work() -> float:
        weights, newest = step(), store.versions[-1]
        start = time.perf_counter()
        for _ in store.walk(range(newest - window, newest)):
            pass
        store.evict_before(newest + 1 - window)
        store.put(newest + 1, weights)
        return time.perf_counter() - start

    return work


def _weights(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer.{number}": 0.02 * torch.randn(shape, generator=generator, dtype=dtype)
        for number, shape in enumerate(SHAPES)
    }
