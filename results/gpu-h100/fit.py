"""The constants of `forms.cost.predict` for a GPU, from the times in this folder: python results/gpu-h100/fit.py

What counts is the choice. From the constants with the least relative errors of the predicted times, a search moves one
constant after the other to where the forms chosen are the least slower than the fastest, with a pull towards the times
themselves. Printed: the constants, and how much slower the forms chosen are with those that the package has and with
these.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "benchmarks"))

from forms import system  # noqa: E402

from stateform.forms.cost.constants import BUILT_IN  # noqa: E402
from stateform.forms.cost.predict import ROOM_ELSEWHERE, features  # noqa: E402
from stateform.forms.cost.work import work  # noqa: E402

FILES = ("forms.json", "choice.json")
PULL, ROUNDS, TOO_SLOW = 0.2, 5, 1.5
FORMS = ("chunkwise", "convolution", "matrix", "recurrent", "scan")
STEPS = (0.3, 0.5, 0.7, 0.85, 0.93, 1.07, 1.2, 1.4, 2, 3)
SHARES = (1, 0.3, 0.1, 0.03)


class Times:
    """What was measured, forward or with gradients: a row for each case, a column for each form."""

    def __init__(self, rows: list[tuple[str, dict[str, Any]]]) -> None:
        cases: dict[tuple[Any, ...], dict[str, float]] = {}
        for file, row in rows:
            cases.setdefault((file, row["structure"], row["B"], row["T"]), {})[row["form"]] = row["ms"] / 1e3
        self.seconds = np.full((len(cases), len(FORMS)), np.inf)
        self.features = np.zeros((len(FORMS), len(cases), 4))
        needs = np.full((len(cases), len(FORMS)), np.inf)
        for at, ((_, structure, rows_, T), found) in enumerate(cases.items()):
            made = system(structure, rows_, T, "meta")
            for form, seconds in found.items():
                j = FORMS.index(form)
                self.seconds[at, j], self.features[j, at] = seconds, features(made, form)
                needs[at, j] = work(made, form)[1]
        self.measured = np.isfinite(self.seconds)
        self.allowed = self.measured & (needs <= np.maximum(ROOM_ELSEWHERE, 2 * needs.min(1, keepdims=True)))
        self.best = self.seconds.min(1)

    def predicted(self, constants: np.ndarray) -> np.ndarray:
        """Seconds, by case and form."""
        return np.maximum(np.einsum("jci,ji->cj", self.features, constants), 1e-12)

    def slower(self, constants: np.ndarray) -> np.ndarray:
        """The time of the form chosen over that of the fastest, by case."""
        chosen = np.where(self.allowed, self.predicted(constants), np.inf).argmin(1)
        return self.seconds[np.arange(len(chosen)), chosen] / self.best

    def loss(self, constants: np.ndarray) -> float:
        """What the search makes small."""
        slower, expected = self.slower(constants), self.predicted(constants)
        odds = np.where(self.allowed, expected**-4.0, 0)
        odds /= odds.sum(1, keepdims=True)
        costs = np.where(self.measured, np.log(self.seconds / self.best[:, None]), 0)
        error = np.where(self.measured, np.abs(np.log(expected / np.where(self.measured, self.seconds, 1))), 0)
        pull = PULL * error.sum() / self.measured.sum(1).mean()
        return float(np.log(slower).sum() + (odds * costs).sum() + pull + 0.3 * (slower > TOO_SLOW).sum())

    def nearest(self) -> np.ndarray:
        """The constants with the least relative errors."""
        found = np.zeros((len(FORMS), 4))
        for j in range(len(FORMS)):
            at = self.measured[:, j]
            A = self.features[j, at] / self.seconds[at, j, None]
            scale = np.where(self.features[j, at].max(0) > 0, A.max(0), 1)
            found[j] = nnls(A / scale, np.ones(len(A)))[0] / scale
        return found

    def fitted(self) -> np.ndarray:
        """The constants that choose best."""
        constants = self.nearest()
        best = self.loss(constants)
        for _ in range(ROUNDS):
            for j in range(len(FORMS)):
                for i in range(4):
                    column = self.features[j, self.measured[:, j], i]
                    if column.max() == 0:
                        continue
                    large = column > 0.1 * column.max()
                    whole = np.median(self.seconds[self.measured[:, j], j][large]) / np.median(column[large])
                    now = constants[j, i]
                    for value in (0.0, *(now * s for s in STEPS), *(whole * s for s in SHARES)):
                        before, constants[j, i] = constants[j, i], value
                        loss = self.loss(constants)
                        if loss < best - 1e-9:
                            best = loss
                        else:
                            constants[j, i] = before
        return constants


def rows(gradients: bool, files: tuple[str, ...] = FILES) -> list[tuple[str, dict[str, Any]]]:
    """All rows that `auto` chooses among: not softmax, and not the matrix of dense transitions."""
    found = []
    for file in files:
        for row in json.loads((HERE / file).read_text(encoding="utf-8"))["rows"]:
            never = row["structure"] == "softmax" or (row["form"] == "matrix" and row["structure"].startswith("dense"))
            if row["gradients"] == gradients and not never:
                found.append((file, row))
    return found


def said(slower: np.ndarray) -> str:
    """How much slower, in words."""
    return (
        f"mean {slower.mean():.3f}, over {TOO_SLOW} in {int((slower > TOO_SLOW).sum())} of {len(slower)}, "
        f"at worst {slower.max():.1f}"
    )


def main() -> None:
    """Print both."""
    for name, gradients in (("inference", False), ("training", True)):
        times = Times(rows(gradients))
        table = BUILT_IN["constants"][f"cuda, {name}"]
        fitted = times.fitted()
        print(f"cuda, {name}: the package's {said(times.slower(np.array([table[form] for form in FORMS])))}")
        print(f"cuda, {name}: fitted {said(times.slower(fitted))}")
        for form, row in zip(FORMS, fitted, strict=True):
            print(f'  "{form}": ({", ".join(f"{c:.3g}" for c in row)}),')


if __name__ == "__main__":
    main()
