"""A System as a node of torch's trees: its tensors are the leaves, those of its readout below a node of their own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch.utils import _pytree as pytree

from .chain import Chain
from .system import System


def _flatten(s: System) -> tuple[list[Any], tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]]:
    own = {name: x for name, x in s.parts.items() if name not in s.readout.parts}
    rest = tuple((f.name, getattr(s, f.name)) for f in fields(s) if f.name not in own and f.name != "readout")
    return [*own.values(), s.readout], (tuple(own), rest)


def _unflatten(xs: Any, context: Any) -> System:
    names, rest = context
    *leaves, readout = xs
    own = dict(zip(names, leaves, strict=True))
    new = {**own, **dict(rest), "readout": readout}
    if "rate" in new:
        new["log_decay"] = (new["log_decay"], new.pop("rate"))
    system = object.__new__(System)  # not validated: transformed leaves need not be tensors
    held = {name: getattr(readout, name, None) for name in getattr(readout, "parts", ())}
    system.__dict__.update(new, parts={**own, **{name: x for name, x in held.items() if x is not None}})
    return system


def _flatten_chain(chain: Chain) -> tuple[list[Any], None]:
    return list(chain.systems), None


def _unflatten_chain(xs: Any, _: None) -> Chain:
    *before, last = xs
    chain = object.__new__(Chain)
    chain.__dict__.update(last.__dict__, before=tuple(before))
    return chain


pytree.register_pytree_node(System, _flatten, _unflatten)
pytree.register_pytree_node(Chain, _flatten_chain, _unflatten_chain)
