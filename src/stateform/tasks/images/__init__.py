"""Pictures as sequences: MNIST, pixel by pixel."""

from .idx import PIXELS, PUBLIC, read_idx, read_mnist
from .pmnist import PermutedMNIST
from .smnist import SequentialMNIST

__all__ = ["PIXELS", "PUBLIC", "PermutedMNIST", "SequentialMNIST", "read_idx", "read_mnist"]
