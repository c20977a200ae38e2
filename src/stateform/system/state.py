"""State: everything a layer must remember to go on, as named tensors whose first axis is the row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import StateformError, nearest, readable, require, values_checked
from ..files import write_atomically
from .precision import asked_of_to, complex_dtype, real_dtype

CACHES = ("keys", "moved_keys", "values", "log_weight")
"""The tensors of a State that grow, [N,L,...]: aligned at their end, of which the last `position` are tokens seen."""
PAIRS = "complex"
"""The key, in the header of a file, of the names of the tensors that are complex: [...,2] there."""
PRECISE = ("S", "log_scale", "log_weight", "log_sum", "moved_keys")
"""The tensors that stay at float32 at least: every token computes them from what they were."""


@dataclass(frozen=True, eq=False)
class State:
    """A frozen mapping from names to tensors, one row per sequence on the first axis.

    A system's own names are `S` [N,H,n,p] (with eta = "sum" the last column is the normaliser), `log_scale` [N,H] (the
    coordinates of a stabilised system: the true state is exp(log_scale) S), `keys` (or `moved_keys`, where more than a
    phase moves them), `values`, `log_weight`, `angle` (the cache of an exp readout) and `position` [N] (tokens seen).
    Layers add the windows of their short convolutions.

    Calls never change a state; `step(..., inplace=True)` may.
    """

    tensors: Mapping[str, Tensor]
    fingerprint: str = ""
    """Which layer the state belongs to; a state of another layer is refused."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.tensors, Mapping),
            f"a State is made of a {type(self.tensors).__name__}; expected a dict from names to tensors",
        )
        rows = None
        for name, x in self.tensors.items():
            if not (isinstance(name, str) and isinstance(x, Tensor) and x.ndim):
                what = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
                raise StateformError(f"{name!r} of this state is {what}; expected a name and a tensor [rows, ...]")
            rows = x.shape[0] if rows is None else rows
            if x.shape[0] != rows:
                raise StateformError(
                    f"{name!r} of this state has {x.shape[0]} rows, {next(iter(self.tensors))!r} has {rows}; "
                    "expected one row a sequence in every tensor"
                )
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (dict(self.tensors), self.fingerprint)

    def __getattr__(self, name: str) -> Tensor:
        tensors = self.__dict__.get("tensors", {})
        if name not in tensors:
            raise AttributeError(f"this state has no {name!r}; it holds {', '.join(tensors) or 'nothing'}")
        return tensors[name]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise StateformError(f"this state has no {name!r}: {nearest(str(name), self.tensors)}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def get(self, name: str) -> Tensor | None:
        """Get the tensor of that name, or None."""
        return self.tensors.get(name)

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return next((x.shape[0] for x in self.tensors.values()), 0)

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def map(self, fn: Callable[[Tensor], Tensor]) -> State:
        """Make a new state with `fn` applied to every tensor."""
        return State({name: fn(x) for name, x in self.tensors.items()}, self.fingerprint)

    def to(self, *args: Any, **kwargs: Any) -> State:
        """Move or cast as `Tensor.to` does; complex tensors stay complex. In half precision what adds up (S, scales)
        stays in float32, and the angle as it is.
        """
        device, dtype = asked_of_to("state", *args, **kwargs)

        def move(name: str, x: Tensor) -> Tensor:
            name = name.rpartition(".")[2]  # in the state of a whole model, "0.S" is the S of layer 0
            if dtype is None or name == "angle" or not (x.is_floating_point() or x.is_complex()):
                return x.to(device) if device else x
            real = real_dtype(dtype)
            if name in PRECISE:
                real = torch.promote_types(real, torch.float32)
            return x.to(device=device, dtype=complex_dtype(real) if x.is_complex() else real)

        return State({name: move(name, x) for name, x in self.tensors.items()}, self.fingerprint)

    def detach(self) -> State:
        """Cut from the autograd graph (truncated back-propagation through time)."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """Copy every tensor."""
        return self.map(Tensor.clone)

    @classmethod
    def cat(cls, states: Sequence[State]) -> State:
        """Join the rows of several states of one layer or model into one state, whatever lengths they have seen.

        Every row goes on as it would alone. Caches become as long as the longest; `select` takes rows out again.

        Args:
            states: one or more, of the same layer or model, on one device.

        Raises:
            StateformError: nothing to join; states of other layers, sizes or devices.
        """
        states = list(states)
        require(len(states) > 0, "there are no states to join; give one or more")
        first = states[0]
        for number, state in enumerate(states):
            if not isinstance(state, State):
                raise StateformError(f"number {number} of what is joined is a {type(state).__name__}; expected a State")
            _check_joins(first, state, number)

        def join(name: str) -> Tensor:
            parts = [state.tensors[name] for state in states]
            if grows(name):
                longest = max(x.shape[1] for x in parts)
                parts = [lengthened(x, longest) for x in parts]
            return torch.cat(parts)

        return cls({name: join(name) for name in first.tensors}, first.fingerprint)

    def select(self, rows: Tensor | list[int]) -> State:
        """Select the rows given by integer indices (or a boolean mask), in that order; caches no longer than these
        need.
        """
        index = rows if isinstance(rows, Tensor) else torch.as_tensor(rows, device="cpu")
        index = index.long() if index.numel() == 0 else index
        whole = not (index.is_floating_point() or index.is_complex())
        require(index.ndim == 1 and whole, f"rows are {rows!r}; expected a list or tensor [N] of indices, or a mask")
        if index.dtype == torch.bool:
            require(len(index) == self.rows, f"the mask of rows has {len(index)} entries, the state {self.rows} rows")
        elif values_checked(index):
            inside = bool(((index >= -self.rows) & (index < self.rows)).all())
            require(inside, f"rows {index.tolist()} are not all among the {self.rows} of the state")
        most, seen = None, self.tensors.get("position")
        if seen is not None and readable(seen) and any(map(grows, self.tensors)):
            most = int(seen[index.to(seen.device)].max()) if index.numel() else 0

        def chosen(name: str, x: Tensor) -> Tensor:
            spare = 0 if most is None or not grows(name) else max(0, x.shape[1] - most)
            return (x[:, spare:] if spare else x)[index.to(x.device)]

        return State({name: chosen(name, x) for name, x in self.tensors.items()}, self.fingerprint)

    def repeat(self, n: int) -> State:
        """Repeat each row n times (beam search, several samples of a prompt)."""
        require(isinstance(n, int) and n >= 0, f"n is {n!r}; expected a whole number of copies")
        return self.map(lambda x: x.repeat_interleave(n, 0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, atomically, with the fingerprint. Complex tensors are pairs of reals there."""
        from safetensors.torch import save

        require(not any(x.is_meta for x in self.tensors.values()), "a state on the device meta has no values to save")
        # A copy each: what is written are bytes, and a view may show them conjugated, strided or shared.
        whole = {k: x.detach().clone(memory_format=torch.contiguous_format) for k, x in self.tensors.items()}
        pairs = [k for k, x in whole.items() if x.is_complex()]  # the format has no complex128
        whole |= {k: torch.view_as_real(whole[k].resolve_conj()) for k in pairs}  # [...,2]
        header = {"stateform": self.fingerprint, PAIRS: json.dumps(pairs)}
        write_atomically(Path(path), save(whole, metadata=header))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read what `save` wrote. Raises StateformError if the file is missing, truncated or of another kind."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        require(path.exists(), f"cannot read a state from {path}: there is no such file")
        require(not path.is_dir(), f"cannot read a state from {path}: it is a folder; name a file in it")
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                fingerprint = header.get("stateform")
                require(fingerprint is not None, f"{path} is a safetensors file, but not a state; name a file that "
                        "State.save wrote")  # fmt: skip
                # A copy lies where torch puts tensors: results may differ by a rounding with where they lie.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                pairs = json.loads(header.get(PAIRS, "[]"))
                tensors |= {name: torch.view_as_complex(tensors[name]) for name in pairs}
                return cls(tensors, str(fingerprint))
        except OSError as error:
            raise StateformError(f"cannot read a state from {path}: {error.strerror or error}") from None
        except SafetensorError as error:
            raise StateformError(f"cannot read a state from {path}: not a whole safetensors file ({error})") from None

    def __repr__(self) -> str:
        parts = ", ".join(f"{k} {list(x.shape)}" for k, x in self.tensors.items())
        return f"State({parts}; {self.nbytes:,} bytes)"


def grows(name: str) -> bool:
    """True if the tensor of that name is a cache; in the state of a whole model, "0.keys" are the keys of layer 0."""
    return name.rpartition(".")[2] in CACHES


def lengthened(cache: Tensor, length: int) -> Tensor:
    """Put zeros before a cache [N,L,...], to make it [N,length,...]."""
    blank = cache.new_zeros(cache.shape[0], length - cache.shape[1], *cache.shape[2:])
    return torch.cat([blank, cache], 1) if blank.shape[1] else cache


def _check_joins(first: State, state: State, number: int) -> None:
    """Raise unless the rows of both fit into one state."""
    require(
        state.fingerprint == first.fingerprint,
        f"state 0 belongs to {first.fingerprint or 'a bare system'}, state {number} to "
        f"{state.fingerprint or 'a bare system'}; expected states of one layer or model",
    )
    require(
        set(state) == set(first),
        f"state 0 holds {', '.join(first)}, state {number} {', '.join(state)}; expected the same tensors",
    )
    for name, x in first.tensors.items():
        y, free = state.tensors[name], 2 if grows(name) else 1
        fits = x.shape[free:] == y.shape[free:] and x.device == y.device
        require(
            fits, f"{name!r} of state 0 is {list(x.shape)} on {x.device}, of state {number} {list(y.shape)} on "
            f"{y.device}; expected the same sizes and one device",
        )  # fmt: skip


def unchecked(tensors: dict[str, Any], fingerprint: str = "") -> State:
    """Make a State of tensors that are known to fit each other; the dict is the State's from now on."""
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace the rest
        return State(tensors, fingerprint)
    state = object.__new__(State)
    state.__dict__.update(tensors=MappingProxyType(tensors), fingerprint=fingerprint)
    return state


def _unflatten(xs: Any, context: tuple[tuple[str, ...], str]) -> State:
    names, fingerprint = context
    return unchecked(dict(zip(names, xs, strict=True)), fingerprint)  # transformed leaves need not be tensors


pytree.register_pytree_node(State, lambda s: (list(s.tensors.values()), (tuple(s.tensors), s.fingerprint)), _unflatten)
