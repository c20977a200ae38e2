"""Which digit an image shows that comes pixel by pixel, in an order that is random, and the same for all images."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import require
from ..base import register_task
from .smnist import SequentialMNIST


@register_task(
    "pmnist", source="permuted sequential MNIST: Le et al. 2015 (arXiv 1504.00941); the data: LeCun et al. 1998"
)
@dataclass(frozen=True, kw_only=True)
class PermutedMNIST(SequentialMNIST):
    """Which digit an image shows that comes pixel by pixel, in an order that is random, and the same for all images.

    As `smnist`, with the pixels in the order of numpy's `RandomState(permutation).permutation(784)`; seed 92916 is the
    one in the code of much published work.
    """

    permutation: int = 92916
    """The seed of the order."""

    @property
    def order(self) -> int:
        return self.permutation

    def check(self) -> None:
        super().check()
        seed = 0 <= self.permutation < 2**32
        require(seed, f"permutation is {self.permutation}; expected a seed, a whole number from 0 to 2**32 - 1")
