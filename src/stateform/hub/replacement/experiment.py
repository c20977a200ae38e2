"""Replacing softmax heads by fitted systems with a finite state: an experiment, and the loss that it costs.

For comparison, heads are also replaced by a window of the last n tokens, by the mean weight of each lag as a recurrence
(`convert.realise`), and by random features (`convert.random_features`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from ...errors import StateformError, nearest, require, require_seed
from ...result import Progress, Steps
from ...system import System
from ..runs import Changes, Runs
from .fit import Fitted, fit
from .heads import chosen_heads, mean_by_lag, softmax_systems, substitute, with_heads, without_heads
from .result import Replacement, Substitute

METHODS = ("fitted", "window", "lag", "random")
"""What a softmax head can be replaced by."""


def softmax_to_state(
    model: nn.Module, calibration: Tensor, held_out: Tensor, *, heads: Sequence[str] | None = None,
    sizes: Sequence[int] = (4, 8, 16, 32), methods: Sequence[str] = ("fitted", "window", "lag"), steps: int = 400,
    each: bool = False, seed: int = 0, on_progress: Progress | None = None,
) -> Replacement:  # fmt: skip
    """Replace softmax heads by systems with a finite state, and measure the model's loss.

    Each head is fitted to its own weights in the model as it is, layer by layer; then all are replaced at once.

    Args:
        model: a LanguageModel, or a causal model of transformers of a supported type. It is not changed.
        calibration: token ids [B,T], on which the heads are fitted.
        held_out: other ids [B,T], on which the loss is measured.
        heads: "layer:head" each, the layer by its name or its number among the mixers; default: all softmax heads.
        sizes: values of n: features, states, or tokens of a window.
        methods: of "fitted", "window" (the softmax over the last n tokens), "lag" (the mean weight of each lag, as a
            recurrence of order n), "random" (random features of the exponential).
        steps: of each fit.
        each: also replace one head at a time, by the fit with the most features.
        seed: of the fits.
        on_progress: called as the work goes on.

    Returns:
        A Replacement. After Ctrl-C it holds what was finished, and is not `complete`.

    Raises:
        StateformError: a model without softmax heads or without a loss, unknown heads or methods, bad sizes or tokens.
    """
    for name in methods:
        require(name in METHODS, f"unknown method {name!r}: {nearest(name, METHODS)}")
    require_seed(seed)
    good = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    require(len(sizes) > 0 and good, f"sizes are {list(sizes)}; expected whole numbers, 1 or more")
    work = _Experiment(Runs(model, calibration), Runs(model, held_out), heads, sizes, methods, on_progress)
    try:
        work.go(steps, seed)
        if each and "fitted" in methods:
            work.one_by_one()
        work.complete = True
    except KeyboardInterrupt:
        pass
    return work.found()


class _Experiment:
    """An experiment at work: the fits and rows found so far.

    Args:
        runs: the model on the calibration text.
        later: the model on the text that was held out.
        heads, sizes, methods, on_progress: as in `softmax_to_state`.
    """

    def __init__(
        self, runs: Runs, later: Runs, heads: Sequence[str] | None, sizes: Sequence[int], methods: Sequence[str],
        on_progress: Progress | None,
    ) -> None:  # fmt: skip
        self.runs, self.later, self.sizes, self.methods = runs, later, sizes, methods
        self.nats = self._nats(None)
        self.systems = softmax_systems(runs)
        require(self.systems, "the model has no causal softmax heads")
        self.chosen = chosen_heads(list(runs.modules), self.systems, heads)
        fits = len(self.chosen) * (len(sizes) * ("fitted" in methods) + 1)
        self.step = Steps(on_progress, fits + len(sizes) * len(methods))
        self.without = self._nats({name: without_heads(index) for name, index in self.chosen.items()})
        self.rows: list[Substitute] = []
        self.fits: dict[str, dict[int, Fitted]] = {name: {} for name in self.chosen}
        self.alone: dict[str, float] = {}
        self.complete = False

    def _nats(self, changes: Changes | None) -> float:
        """Measure the loss on the text that was held out, with some mixers changed."""
        nats = self.later(changes).nats
        if nats is None:
            name = type(self.later.model).__name__
            raise StateformError(f"{name} is no causal language model: there is no loss to measure")
        return nats

    def go(self, steps: int, seed: int) -> None:
        """Fit each head, then replace all heads at once, by every method and size."""
        lags: dict[str, Tensor] = {}
        for name, index in self.chosen.items():
            self.step(f"{name}: the weights on the calibration text")
            system = self.systems[name].select_heads(index)
            alpha = system.coefficients()
            lags[name] = mean_by_lag(alpha)
            for n in self.sizes if "fitted" in self.methods else ():
                self.step(f"{name}: {n} features")
                self.fits[name][n] = fit(system, n, steps=steps, seed=seed, alpha=alpha)
        for method in self.methods:
            for n in self.sizes:
                self.step(f"{method}, n = {n}")
                changes = {}
                for name, index in self.chosen.items():
                    other = partial(substitute, method, n, seed, self.fits[name].get(n), lags[name])
                    changes[name] = with_heads(index, other)
                self.rows.append(Substitute(method, n, self._numbers_kept(method, n), self._nats(changes)))

    def one_by_one(self) -> None:
        """Replace one head at a time, by its fit with the most features."""
        for name, index in self.chosen.items():
            best = self.fits[name][max(self.sizes)]
            for i, head in enumerate(index):
                self.alone[f"{name}:{head}"] = self._nats({name: with_heads([head], best.select(i).system)})

    def _sizes(self) -> tuple[int, int]:
        """Count the real numbers of a key, and of a value, of a head."""
        one: System = self.systems[next(iter(self.chosen))]
        assert one.v is not None
        return one.k.shape[-1] * (2 if one.k.is_complex() else 1), one.v.shape[-1]

    def _numbers_kept(self, method: str, n: int) -> int:
        """Count the numbers that a head keeps, in its state or its window."""
        keys, values = self._sizes()
        return n * (keys + values) if method == "window" else n * (values + 1)

    def found(self) -> Replacement:
        """Make the result of what was found."""
        self.step.end()
        before, after = self.runs.inputs, self.later.inputs
        assert before is not None and after is not None
        return Replacement(
            tuple(f"{name}:{head}" for name, index in self.chosen.items() for head in index),
            (before.numel(), after.numel()), self.nats, self.without, after.shape[1] * sum(self._sizes()),
            tuple(self.rows), self.alone, max(self.sizes), self.fits, self.complete,
        )  # fmt: skip
