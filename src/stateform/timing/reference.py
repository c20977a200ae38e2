"""The check that the parties of a pair are one function: outputs, steps and gradients beside those of our layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..clock import RECOVERABLE, one_line
from ..system.precision import GRADIENT, HALF, PROJECTED
from .pair import Operation, Pair, Rival, Setting
from .rivals.party import Party

CHECKED = (2, 300)
"""Rows and tokens on which the parties are compared: more than one chunk of every rival, and a remainder."""
PROMPT, STEPS = 10, 4
"""Tokens before decoding, and tokens decoded for the comparison."""
Drawn = Callable[..., tuple[Tensor, ...]]
"""Draws inputs: `Schedule.draw_inputs`."""


def outputs(y: Any) -> list[Tensor]:
    """Make a list of one output, or of several."""
    return list(y) if isinstance(y, (list, tuple)) else [y]


class Reference:
    """The outputs and gradients of our layer for some inputs, with which rivals are compared."""

    def __init__(self, pair: Pair | Operation, drawn: Drawn, dtype: torch.dtype, setting: Setting) -> None:
        self.setting, self.dtype = setting, pair.checked_in(dtype)
        self.inputs = drawn(setting.inputs, *CHECKED, self.dtype)
        self.weight: Tensor | None = None
        with exact():
            self.want = {mode: self.results_of(setting.ours, mode) for mode in ("forward", "training")}

    def results_of(self, party: Party, mode: str) -> list[Tensor]:
        """Compute a party's outputs ("forward"), gradients of the inputs ("training") or steps after a prompt."""
        if mode == "training":
            xs = tuple(x.clone().requires_grad_() for x in self.inputs)
            y = party.run(*xs)
            if self.weight is None:
                self.weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
            return list(torch.autograd.grad(y, xs, self.weight))
        with torch.no_grad():
            if mode == "forward":
                return outputs(party.run(*self.inputs))
            assert party.begin is not None
            first = tuple(x[:1] for x in self.inputs)  # one row, as it is timed
            step = party.begin(tuple(x[:, :PROMPT] for x in first), PROMPT)
            at = range(PROMPT, PROMPT + STEPS)
            return [torch.cat([step(*(x[:, t : t + 1] for x in first)) for t in at], 1)]

    def compared(self, rival: Rival) -> tuple[dict[str, Any], Party | None]:
        """Compare a rival: a row with its differences, the modes it may be timed in, and why not in the others."""
        about: dict[str, Any] = {
            "name": rival.name, "kind": "rival", "package": rival.package, "errors": {}, "timed": [], "notes": [],
        }  # fmt: skip
        missing = rival.missing()
        if missing:
            about["notes"].append(missing)
            return about, None
        allowed = max(rival.allowed, PROJECTED * HALF.get(self.dtype, 0.0))
        if rival.allowed < allowed or rival.why:
            about["notes"].append(rival.why or f"compared in {str(self.dtype).removeprefix('torch.')}")
        about["allowed"] = allowed
        try:
            party = rival.make(self.setting.source)
        except RECOVERABLE as error:
            about["notes"].append(f"cannot be made: {one_line(error)}")
            return about, None
        for mode in ("forward", "decode", "training"):
            if mode == "decode" and party.begin is None:
                about["notes"].append("cannot go on from a state")
                continue
            try:
                with exact():
                    got = self.results_of(party, mode)
            except RECOVERABLE as error:
                about["notes"].append(f"{mode} fails: {one_line(error)}")
                continue
            want = self.want.get(mode) or [y[:1, PROMPT : PROMPT + STEPS] for y in self.want["forward"]]
            found = max(difference(a, b) for a, b in zip(got, want, strict=True))
            about["errors"][mode] = found
            if found <= allowed * (GRADIENT if mode == "training" else 1):
                about["timed"].append(mode)
            else:
                about["notes"].append(f"{mode} differs by {found:.2g}, so it is not timed")
        return about, party if about["timed"] else None


def difference(got: Tensor, want: Tensor) -> float:
    """Divide the largest difference by the largest value; infinite if either is not finite or the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    found = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-300))
    return found if found == found else float("inf")


@contextmanager
def exact() -> Iterator[None]:
    """Keep a GPU from computing float32 products and convolutions in TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
