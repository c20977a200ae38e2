"""What numbers were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, how many of its cores and threads are used, the device, and the versions that matter."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    if device.startswith("cuda"):
        device = torch.cuda.get_device_name(device)
    return {
        "cpu": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(), "device": device,
    }  # fmt: skip


def stateform_version() -> str:
    """The version that is installed."""
    try:
        return version("stateform")
    except PackageNotFoundError:
        return "unknown"
