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
            "chunkwise": (0.00128, 6.99e-05, 1.49e-13, 8.84e-12),
            "convolution": (0.000831, 0, 1.09e-14, 4.28e-12),
            "matrix": (0.00127, 0, 8.05e-14, 4.56e-11),
            "recurrent": (0.00251, 0.000169, 1.33e-11, 0),
            "scan": (0.00299, 3.33e-06, 3.22e-13, 2.29e-11),
        },
        "cuda, training": {
            "chunkwise": (0.00271, 9.67e-05, 1.26e-13, 3.37e-11),
            "convolution": (0.00179, 0, 8.37e-14, 1.04e-11),
            "matrix": (0.00294, 0, 1.46e-13, 1.98e-11),
            "recurrent": (0.00816, 0.000671, 6.52e-11, 0),
            "scan": (0.0109, 0, 4.43e-13, 9.79e-11),
        },
    },
}
"""By device and purpose, by way: seconds a call, a loop, a unit of work, a number written."""
