"""A pretrained model timed as it is and with its mixers in our forms: prefill, decoding, a training step, in turns."""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..clock import Clock, Job, spread, take_turns
from ..contract.model import CACHES
from ..errors import nearest, require, require_finite_weights, require_seed
from ..hub import accelerate, undo
from ..hub.lift import check_tokens, evaluating
from ..hub.supported import require_supported
from ..result import Progress, Record, Steps, header, until_interrupted
from ..system.precision import is_constant, largest, relative_error, tolerance, why_no_proof, wide

MODEL_MODES = ("prefill", "decode", "training")
"""What of a model is timed."""
AS_IT_IS, OURS = "as it is", "stateform"
PROMPT = 16
"""Tokens before those that are decoded."""


class ModelBench(Record):
    """The result of `bench_model`: `print` it, or `.to_dict()`."""

    def ratio(self, mode: str) -> float:
        """Divide the median time of the model as it is by that with our forms: above 1, ours is faster."""
        times = self.result["modes"][mode]
        return float(times[AS_IT_IS]["median"] / times[OURS]["median"])

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        r = self.result
        yield Text(
            f"{r['name']}: {r['parameters']:,} weights, {len(r['replaced'])} mixers in our forms, {len(r['left'])} as "
            f"before; logits differ by {r['difference']:.1e} of the largest ({r['allowed']:.1e} allowed)"
            + (", but are the same at every position, whatever the tokens" if r["constant"] else "")
        )
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("", "as it is, ms", "in our forms, ms", "times as fast"):
            table.add_column(heading, justify="left" if not heading else "right", header_style="dim")
        for mode, times in r["modes"].items():
            cells = [_time(times[side]) if side in times else times["failed"][side] for side in (AS_IT_IS, OURS)]
            both = AS_IT_IS in times and OURS in times
            table.add_row(f"{mode} ({r['what'][mode]})", *cells, f"{self.ratio(mode):.2f}" if both else "")
        yield table
        m = r["machine"]
        yield Text(
            f"Medians (least to largest) of runs in turns; {m.get('threads', torch.get_num_threads())} threads, "
            f"{r['dtype']}, {r['device']}.",
            style="dim",
        )


def _time(spread: dict[str, Any]) -> str:
    return f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})"


def _drawn(model: nn.Module, length: int, seed: int) -> Tensor:
    size = int(model.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
    return torch.randint(size, (1, length), generator=torch.Generator().manual_seed(seed))


def bench_model(
    model: nn.Module, tokens: Tensor | None = None, *, name: str | None = None, modes: Sequence[str] = MODEL_MODES,
    length: int = 2048, train_length: int = 512, repeats: int = 5, seed: int = 0,
    on_progress: Progress | None = None, clock: Clock = time.perf_counter,
) -> ModelBench:  # fmt: skip
    """Time a causal language model of transformers as it is and accelerated, in turns, after both were compared.

    Args:
        model: of a supported type; left as it was given, its gradients too.
        tokens: integers [T] or [1,T], T at least `length` (default: drawn).
        name: of the model in the result.
        modes: "prefill" (a prompt of `length` tokens into a cache, the logits of its last), "decode" (a token from the
            cache), "training" (loss and gradients on `train_length` tokens).
        length: tokens of the prompt.
        train_length: tokens of the training step.
        repeats: rounds.
        seed: of the drawn tokens.
        on_progress: called as the work goes on.
        clock: seconds; for tests.

    Returns:
        A ModelBench. After Ctrl-C in the rounds it holds what was measured, and is not `complete`.

    Raises:
        StateformError: before any work: an unknown mode, too few tokens, a type without adapter, a weight that is not
            finite. Then: the accelerated model is not the same function.
    """
    check_settings(modes, length, train_length, repeats, seed)
    require_supported(model)
    require_finite_weights(model)
    weight = next(model.parameters())
    tokens = check_tokens(model, _drawn(model, length, seed) if tokens is None else tokens)[:1]
    require(tokens.shape[1] >= length, f"there are {tokens.shape[1]} tokens; expected {length} or more")
    result: dict[str, Any] = {
        **header(), "name": name or type(model).__name__, "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(weight.device), "modes": {}, "complete": False,
        "what": {"prefill": f"{length} tokens", "decode": "a token", "training": f"{train_length} tokens"},
    }  # fmt: skip
    prompt = min(PROMPT, tokens.shape[1] - 1)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    sync = torch.cuda.synchronize if weight.is_cuda else lambda: None

    def prefill() -> Any:
        with torch.no_grad():
            return model(tokens[:, :length], use_cache=True, **last)

    def decode() -> Callable[[], Any]:
        with torch.no_grad():
            held = getattr(model(tokens[:, :prompt], use_cache=True), cache)

        def step() -> None:
            with torch.no_grad():
                model(tokens[:, prompt : prompt + 1], use_cache=True, **{cache: held})

        return step

    def train() -> None:
        model.zero_grad(set_to_none=True)
        model(tokens[:, :train_length], labels=tokens[:, :train_length], use_cache=False).loss.backward()

    def job(mode: str, ours: bool) -> Job:
        def ready() -> Callable[[], Any]:
            (accelerate if ours else undo)(model)
            model.train(mode == "training")
            return {"prefill": lambda: prefill, "decode": decode, "training": lambda: train}[mode]()

        return ready

    with _left_as_it_was(model):
        made = accelerate(model)
        require(made.replaced, "no mixer of this model has a form of ours that is not its own: nothing to compare")
        cache = cache_name(model, tokens[:, :2])
        result |= {"replaced": made.replaced, "left": made.left, **_compared(model, tokens[:, : min(length, 300)])}
        step = Steps(on_progress, len(modes))
        with until_interrupted(result):
            for mode in modes:
                step(mode)
                times: dict[str, list[float]] = {}
                failed: dict[str, str] = {}
                gc.collect()  # frees what the mode before held
                try:
                    take_turns({AS_IT_IS: job(mode, False), OURS: job(mode, True)}, repeats, times, failed, sync, clock)
                finally:
                    found = {side: spread(t) for side, t in times.items() if t}
                    result["modes"][mode] = {**found, "failed": failed} if failed else found
    return ModelBench(result)


def check_settings(modes: Sequence[str], length: int, train_length: int, repeats: int, seed: int) -> None:
    """Raise unless the settings of `bench_model` can be used."""
    for mode in modes:
        require(mode in MODEL_MODES, f"unknown mode {mode!r}: {nearest(mode, MODEL_MODES)}")
    for name, value, least in (("length", length, 2), ("train_length", train_length, 2), ("repeats", repeats, 1)):
        require(value >= least, f"{name} is {value}; expected {least} or more")
    require_seed(seed)


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and undo an acceleration; afterwards restore it, its gradients too."""
    was, grads = undo(model), [(p, p.grad) for p in model.parameters()]
    try:
        with evaluating(model):
            yield
    finally:
        for p, grad in grads:
            p.grad = grad
        undo(model)
        if was:
            accelerate(model)


def cache_name(model: Any, tokens: Tensor) -> str:
    """Find the name by which a model takes and gives its cache."""
    with torch.no_grad():
        out = model(tokens, use_cache=True)
    found = next((name for name in CACHES if getattr(out, name, None) is not None), None)
    require(found is not None, f"{type(model).__name__} gives no cache; expected a causal language model")
    return str(found)


def _compared(model: Any, tokens: Tensor) -> dict[str, Any]:
    """Compare the logits of the accelerated model with the model's own, and raise if they differ by more than allowed.

    `constant` is True if the logits are the same at every position: then the comparison proves little.
    """
    with torch.no_grad():
        undo(model)
        want = model(tokens, use_cache=False).logits
        accelerate(model)
        got = model(tokens, use_cache=False).logits
    why = why_no_proof(want)
    require(not why, f"the logits of {type(model).__name__}: {why}")
    off = largest(relative_error(wide(got), wide(want)))
    allowed = tolerance(want.dtype, tokens.shape[1], rounded=64)
    require(
        off <= allowed, f"the accelerated model is off by {off:.1e} of the largest logit ({allowed:.1e} allowed): this "
        "is a fault of Stateform, please report it"
    )  # fmt: skip
    return {"difference": off, "allowed": allowed, "constant": is_constant(want)}
