"""One thread, here and in the commands that tests start: the tensors are small, and two processes run side by side."""

import os

import torch

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
