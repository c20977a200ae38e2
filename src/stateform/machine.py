"""The machine that numbers are measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

LEFT = 0.9
"""The share of the memory that is free now that a model may take."""


def machine(device: str = "cpu") -> dict[str, Any]:
    """Name the processor, its cores, the threads in use, the device, and the versions that numbers depend on."""
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
    """Give the version that is installed."""
    try:
        return version("stateform")
    except PackageNotFoundError:
        return "unknown"


def free_memory() -> float:
    """Count the bytes a model may take: `LEFT` of the memory free now; infinite where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return LEFT * float(line.split()[1]) * 1024
        return LEFT * float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return float("inf")
