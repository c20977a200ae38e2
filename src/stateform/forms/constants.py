"""The constants of `predict` for machines on which `calibrate` was not run."""

from typing import Any

BUILT_IN: dict[str, Any] = {
    "machine": "Intel Xeon with AVX-512, one thread",
    "constants": {
        "cpu, inference": {
            "chunkwise": (0.000349, 0.000475, 6.92e-11),
            "compiled": (0.000361, 0, 2.26e-11),
            "convolution": (0.000191, 0, 1.07e-09),
            "matrix": (0.000797, 0, 4.58e-11),
            "recurrent": (0.000331, 7.19e-05, 2.43e-10),
            "scan": (0, 0.000324, 1.48e-10),
        },
        "cpu, training": {
            "chunkwise": (0.000267, 0.00135, 1.31e-10),
            "compiled": (0.0012, 0, 1.12e-10),
            "convolution": (0.000645, 0, 2.5e-09),
            "matrix": (0.00189, 0, 1.07e-10),
            "recurrent": (0, 0.000327, 2e-09),
            "scan": (0, 0.00108, 2.57e-10),
        },
    },
}
"""By device and purpose; by way: a call, a loop [seconds], a unit of work [seconds an operation]."""
