"""What the modules of a model give while it runs, so that a failure names the first one that differs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .law import Layout

LOGITS = "logits"

Rows = list[Tensor]
"""One tensor [1,T,...] a text: texts may have different lengths."""


class WrongShapeError(Exception):
    """The logits have other rows or tokens than the calls."""


@dataclass
class Heard:
    """What the modules gave over a run, at the places of each text; the logits are the last."""

    sites: dict[str, Rows]

    @property
    def logits(self) -> Rows:
        return self.sites[LOGITS]


def places(layout: Layout, B: int) -> Callable[[list[Tensor]], Rows | None]:
    """Make what reads the texts of a layout of B rows from a module's outputs, one a call; None if they do not fit."""

    def read(outputs: list[Tensor]) -> Rows | None:
        if [x.shape[1] for x in outputs] != list(layout.calls) or any(len(x) != B for x in outputs):
            return None
        x = torch.cat(outputs, 1)
        return [x[row : row + 1, at.to(x.device)] for row, at in layout.texts]

    return read


class Ears:
    """Listen to the embedding and the blocks of a model, in the order in which they speak."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.kinds = model, {name: type(m).__name__ for name, m in _blocks(model).items()}

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, list[Tensor]]]:
        """Record the outputs of each module, one a call."""
        heard: dict[str, list[Tensor]] = {}
        modules = dict(self.model.named_modules())

        def listen(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                first = _first(output)
                if first is not None and first.ndim > 2:
                    heard.setdefault(name, []).append(first.detach().clone())

            return hook

        hooks = [modules[name].register_forward_hook(listen(name)) for name in self.kinds]
        hooks.append(self.model.register_forward_hook(listen(LOGITS)))
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def hear(
        self, run: Callable[[], Any], read: Callable[[list[Tensor]], Rows | None], shapes: Sequence[list[int]] = ()
    ) -> Heard:
        """Run the model, and give what `read` takes from the outputs of each module.

        Args:
            shapes: of the outputs of each call, rows and tokens: said where the logits have others.
        """
        with self.listening() as heard:
            run()
        found = {name: read(outputs) for name, outputs in heard.items()}
        if found.get(LOGITS) is None:
            raise WrongShapeError(self.misshapen(heard, shapes))
        return Heard({name: x for name, x in found.items() if x is not None})

    def misshapen(self, heard: dict[str, list[Tensor]], shapes: Sequence[list[int]]) -> str:
        """Find the module that first gave other rows or tokens than it got."""
        for name, outputs in heard.items():
            for call, (x, shape) in enumerate(zip(outputs, shapes, strict=False)):
                if list(x.shape[:2]) != shape:
                    position = sum(n for _, n in shapes[:call])
                    return (
                        f"first at {self.named(name)}: gives {list(x.shape[:2])} for {shape} (rows, tokens) from "
                        f"position {position}"
                    )
        return f"there are logits of {len(heard.get(LOGITS, []))} calls"

    def named(self, site: str) -> str:
        """Name a module by its path and class."""
        return f"{site} ({self.kinds[site]})" if site in self.kinds else site


def embedding(model: Any) -> nn.Module | None:
    """Find the module that takes the tokens, where the model says so."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """List the embedding, the blocks of the longest ModuleList, and their children."""
    names = {id(m): name for name, m in model.named_modules()}
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    longest = max(lists, key=lambda item: (len(item[1]), -item[0].count(".")), default=None)
    found: list[nn.Module] = []
    first = embedding(model)
    if first is not None:
        found.append(first)
    for block in () if longest is None else longest[1]:
        found += [child for child in block.children() if not isinstance(child, nn.ModuleList)]
        found.append(block)
    return {names[id(m)]: m for m in found if id(m) in names}


def _first(output: Any) -> Tensor | None:
    """Take the logits of an output, or its first tensor."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = list(output.values()) if isinstance(output, dict) else output
    return next((x for x in values if isinstance(x, Tensor)), None) if isinstance(values, list | tuple) else None
