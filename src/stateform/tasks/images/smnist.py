"""Which digit an image shows that comes pixel by pixel, row after row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import require
from ..base import Batch, Split, register_task
from ..data import Digits
from .idx import PIXELS, PUBLIC, read_mnist


@register_task("smnist", source="sequential MNIST: Le et al. 2015 (arXiv 1504.00941); the data: LeCun et al. 1998")
@dataclass(frozen=True, kw_only=True)
class SequentialMNIST(Digits):
    """Which digit an image shows that comes pixel by pixel, row after row.

    Each of the 784 tokens is one number, a pixel from 0 to 1; the class is 0 to 9. The test images are the official
    ones; of the 60,000 others the last 5,000 are "valid". `path` is a folder with the four IDX files, .gz or not.
    """

    length: int = PIXELS
    """Pixels: 784."""
    folder: ClassVar[str] = "mnist"
    public: ClassVar[str] = PUBLIC

    @property
    def order(self) -> int | None:
        """Give the seed by which pixels are permuted; None: they are not."""
        return None

    def check_length(self, length: int) -> None:
        super().check_length(length)
        require(length == PIXELS, f"length is {length}; expected {PIXELS}: an image has 28 by 28 pixels")

    def whole(self, split: Split) -> Batch:
        return read_mnist(self.place, split, self.order)
