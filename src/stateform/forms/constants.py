"""The constants of `predict` for machines on which `calibrate` was not run."""

from typing import Any

BUILT_IN: dict[str, Any] = {
    "machine": "Intel Xeon with AVX-512, one thread",
    "constants": {
        "cpu, inference": {
            "chunkwise": (0.000697, 0.00014, 5.1e-11),
            "compiled": (0.000358, 0, 2.3e-11),
            "convolution": (0, 0, 1.51e-09),
            "matrix": (0.000597, 0, 1.13e-10),
            "recurrent": (0, 9.27e-05, 6.08e-10),
            "scan": (0, 0.000324, 2.94e-10),
        },
        "cpu, training": {
            "chunkwise": (0.0014, 0.000881, 2.39e-10),
            "compiled": (0.00112, 0, 2.39e-10),
            "convolution": (0.00298, 0, 3.85e-09),
            "matrix": (0.00153, 0, 2.67e-10),
            "recurrent": (0, 0.000559, 4.24e-09),
            "scan": (0, 0.0024, 2.12e-10),
        },
    },
}
"""By device and purpose; by way: a call, a loop [seconds], a unit of work [seconds an operation]."""
