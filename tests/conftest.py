"""One thread, here and in the commands that tests start: the tensors are small, and two processes run side by side."""

import gc
import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what imports have made, a million things that stay: each of the many
    collections that benchmarks ask for would look at every one of them.
    """
    gc.collect()
    gc.freeze()
