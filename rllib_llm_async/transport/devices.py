"""GPUs: a name that all processes have for one, and when it has done its work."""

from __future__ import annotations

import torch


def device_name(device: torch.device) -> str:
    """CUDA's unique id of a GPU; of another device its type."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that it was asked for; at once of other devices.

    Asked for, not done, is all that a call of torch says there: whoever reads a clock
    or hands memory to another process waits first.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
