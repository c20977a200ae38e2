"""In-context linear regression: points x and their y = w.x + noise, in turns; y is to be predicted from x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import require
from ..base import Batch, Split, Task, register_task


@register_task("icl_regression", source="Garg et al. 2022, arXiv 2208.01066")
@dataclass(frozen=True, kw_only=True)
class ICLRegression(Task):
    """In-context linear regression: points x and their y = w.x + noise, in turns; y is to be predicted from x.

    With dim=2 and length=5 (tokens are columns, `.` is NaN):

        inputs   x11  0   x21  0   x31
                 x12  0   x22  0   x32
                 0    y1  0    y2  0
        labels   y1   .   y2   .   y3

    Each example has a w of its own; x is standard normal, w normal with variance 1/dim, so that y has variance 1 and
    the error is the one that the paper plots (it has variance 1 for w, and divides the error by dim). Its y is in the
    first number of a token like that of x; here it has a number of its own, as a model without position codes could not
    tell the two apart. The paper has 20 dimensions and 41 points, that is length 82.

    In training all points are asked for, as in the paper. In the valid and test splits without noise only those after
    more than `dim` others are: these are determined, up to rounding. With noise, all are, and least squares with a
    ridge (`oracle`) is the best there is, not exact.
    """

    metric: ClassVar[Literal["accuracy", "mse", "bits"]] = "mse"

    dim: int = 20
    """Numbers of a point."""
    length: int = 82
    """Tokens of an example, two a point: more than twice dim + 1."""
    noise: float = 0.0
    """Standard deviation of the noise on y."""

    @property
    def vocab_size(self) -> None:
        return None

    @property
    def d_input(self) -> int:
        return self.dim + 1

    @property
    def n_out(self) -> int:
        return 1

    @property
    def test_lengths(self) -> tuple[int, ...]:
        return (self.length, 2 * self.length)

    def check(self) -> None:
        require(self.dim >= 1, f"dim is {self.dim}; expected 1 or more")
        require(0 <= self.noise < float("inf"), f"noise is {self.noise:g}; expected a standard deviation, 0 or more")

    def check_length(self, length: int) -> None:
        super().check_length(length)
        least = 2 * self.dim + 3
        require(
            length >= least,
            f"points of {self.dim} numbers need length {least} or more, for {self.dim + 1} of them with their y and "
            f"another; length is {length}: ask for fewer numbers or a longer sequence",
        )

    def draw(self, n: int, length: int, rng: np.random.RandomState, split: Split) -> Batch:
        points = (length + 1) // 2
        x = rng.standard_normal((n, points, self.dim)).astype(np.float32)
        w = rng.standard_normal((n, self.dim, 1)) / np.sqrt(self.dim)
        y = x.astype(np.float64) @ w + self.noise * rng.standard_normal((n, points, 1))
        tokens = np.zeros((n, points, 2, self.dim + 1), dtype=np.float32)
        tokens[:, :, 0, :-1] = x
        tokens[:, :, 1, -1:] = y
        labels = np.full((n, points, 2, 1), np.nan, dtype=np.float32)
        asked = 0 if split == "train" or self.noise else self.dim + 1
        labels[:, asked:, 0] = y[:, asked:]
        rows = [torch.from_numpy(x.reshape(n, 2 * points, -1)[:, :length].copy()) for x in (tokens, labels)]
        return Batch(rows[0], rows[1])

    def oracle(self, batch: Batch) -> Tensor:
        tokens = batch.inputs.double().numpy()
        answers = np.zeros(batch.labels.shape)
        for i, row in enumerate(tokens):
            x, y = row[::2, :-1], row[1::2, -1]
            for t in range(len(x)):
                # The mean of w given the points so far; without noise, the shortest w that fits them.
                fit = x[:t].T @ x[:t] + self.noise**2 * self.dim * np.eye(self.dim)
                w = np.linalg.solve(fit, x[:t].T @ y[:t]) if self.noise else np.linalg.lstsq(x[:t], y[:t])[0]
                answers[i, 2 * t] = x[t] @ w
        return torch.from_numpy(answers).float()
