"""One thread: the tensors of the tests are small, and two processes may run side by side."""

import torch

torch.set_num_threads(1)
