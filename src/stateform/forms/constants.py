"""The constants of `predict` for machines on which `calibrate` was not run."""

from typing import Any

BUILT_IN: dict[str, Any] = {
    "machines": {
        "cpu": "Intel Xeon with AVX-512 at 2.1 GHz, two threads",
        "cuda": "NVIDIA H100",
    },
    "constants": {
        "cpu, inference": {
            "chunkwise": (0.000474, 0, 3.34e-12, 3.88e-09),
            "compiled": (0.000306, 0, 1.06e-11, 1.5e-10),
            "convolution": (0.000614, 0, 5.55e-10, 3.94e-09),
            "matrix": (0.000456, 0, 2.79e-11, 6e-09),
            "recurrent": (9.08e-05, 8.2e-05, 3.88e-10, 0),
            "scan": (0, 0.000255, 4.91e-11, 4.97e-09),
        },
        "cpu, training": {
            "chunkwise": (0.000998, 0, 0, 1.26e-08),
            "compiled": (0.00111, 0, 5.5e-11, 3.96e-10),
            "convolution": (0.0024, 0, 1.1e-09, 5.71e-09),
            "matrix": (0.00115, 0, 4.11e-11, 2.03e-08),
            "recurrent": (0, 0.000347, 2.25e-09, 0),
            "scan": (0.00129, 0.000399, 1.73e-10, 2.96e-08),
        },
        "cuda, inference": {
            "chunkwise": (0.00127, 3.79e-05, 0, 6.27e-12),
            "convolution": (0.00199, 0, 1.69e-14, 3.68e-12),
            "matrix": (0.00123, 0, 4.49e-14, 2.26e-12),
            "recurrent": (0.000674, 0.000163, 1.76e-11, 0),
            "scan": (0.00346, 8.11e-06, 5.35e-13, 2.5e-11),
        },
        "cuda, training": {
            "chunkwise": (0.00312, 0.000122, 0, 2.58e-11),
            "convolution": (0.00409, 0, 0, 1.15e-11),
            "matrix": (0.00281, 0, 4.02e-14, 3.73e-11),
            "recurrent": (0.00255, 0.000609, 1.26e-10, 0),
            "scan": (0.0116, 3.59e-05, 1.84e-12, 1.33e-10),
        },
    },
}
"""By device and purpose, by way: seconds a call, a loop, a unit of work, a number written."""
