"""Which GPU a tensor is on, by a name that all processes have for it."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """CUDA's unique id of a GPU; of another device its type."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)
