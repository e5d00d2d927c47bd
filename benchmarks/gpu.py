"""What runs here: the device, what it can do at most, what was taken of it."""

from __future__ import annotations

import psutil
import torch

#: FLOP/s in bfloat16 without sparsity, by what a GPU's name contains.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_flops() -> float:
    """Of the GPU; infinite where that is not known, which makes a share of it 0."""
    name = device_name()
    return next((f for part, f in PEAK_FLOPS.items() if part in name), float("inf"))


def peak_memory() -> int:
    """Bytes, the most that this process had on its GPU; on CPU what it has now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return psutil.Process().memory_info().rss
