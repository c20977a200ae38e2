"""Are the parties of a pair one function? Their outputs, steps and gradients beside those of our layer."""

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
"""Draws inputs: `Schedule.drawn`."""


def outputs(y: Any) -> list[Tensor]:
    """One output, or several, as a list."""
    return list(y) if isinstance(y, (list, tuple)) else [y]


class Reference:
    """What ours gives for some inputs, and how far a rival is from it."""

    def __init__(self, pair: Pair | Operation, drawn: Drawn, dtype: torch.dtype, setting: Setting) -> None:
        self.setting, self.dtype = setting, pair.checked_in(dtype)
        self.inputs = drawn(setting.inputs, *CHECKED, self.dtype)
        self.weight: Tensor | None = None
        with exact():
            self.want = {mode: self.of(setting.ours, mode) for mode in ("forward", "training")}

    def of(self, party: Party, mode: str) -> list[Tensor]:
        """The outputs, the gradients with respect to the inputs, or the outputs of steps behind a prompt."""
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
        """A row about a rival: its differences, for what it can be timed, and why not for the rest."""
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
                    got = self.of(party, mode)
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
    """Largest difference over the largest value; infinite where either is not finite or the shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    found = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-300))
    return found if found == found else float("inf")


@contextmanager
def exact() -> Iterator[None]:
    """float32 is float32: no TF32 in the convolutions and products of a GPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
