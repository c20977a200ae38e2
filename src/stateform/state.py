"""State: everything a layer must remember to go on, as named tensors whose first axis is the row."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._errors import StateformError, nearest, require


@dataclass(frozen=True, eq=False)
class State:
    """A frozen mapping from names to tensors, one row per sequence on the first axis.

    A system's own names are `S` [N,H,n,p] (with eta = "sum" the last column is the normaliser), `log_scale` [N,H] (the
    coordinates of a stabilised system: the true state is exp(log_scale) S), `keys`, `values`, `log_weight`, `angle`
    (the cache of an exp readout) and `position` [N] (tokens seen). Layers add the windows of their short convolutions.

    Calls never change a state; `step(..., inplace=True)` may.
    """

    tensors: Mapping[str, Tensor]
    fingerprint: str = ""
    """Which layer the state belongs to; a state of another layer is refused."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["tensors"][name]
        except KeyError:
            raise AttributeError(
                f"this state has no {name!r}; it holds {', '.join(self.__dict__['tensors'])}"
            ) from None

    def __getitem__(self, name: str) -> Tensor:
        require(name in self.tensors, f"this state has no {name!r}: {nearest(name, self.tensors)}")
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def get(self, name: str) -> Tensor | None:
        """The tensor of that name, or None."""
        return self.tensors.get(name)

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return next(iter(self.tensors.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, in bytes."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def map(self, fn: Callable[[Tensor], Tensor]) -> State:
        """A new state with `fn` applied to every tensor."""
        return State({name: fn(x) for name, x in self.tensors.items()}, self.fingerprint)

    def to(self, *args: Any, **kwargs: Any) -> State:
        """Move or cast as `Tensor.to` does; a dtype reaches the floating tensors alone and keeps complex ones complex."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)

        def move(x: Tensor) -> Tensor:
            if dtype is None or not (x.is_floating_point() or x.is_complex()):
                return x.to(device) if device else x
            target = dtype if not x.is_complex() or dtype.is_complex else dtype.to_complex()
            return x.to(device=device, dtype=target)

        return self.map(move)

    def detach(self) -> State:
        """Cut from the autograd graph (truncated back-propagation through time)."""
        return self.map(Tensor.detach)

    def clone(self) -> State:
        """Copy every tensor."""
        return self.map(Tensor.clone)

    def select(self, rows: Tensor | list[int]) -> State:
        """The rows given by integer indices (or a boolean mask), in that order."""
        return self.map(lambda x: x[torch.as_tensor(rows, device=x.device)])

    def repeat(self, n: int) -> State:
        """Each row n times in a row (beam search, several samples of a prompt)."""
        return self.map(lambda x: x.repeat_interleave(n, 0))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, atomically, with the fingerprint."""
        from safetensors.torch import save

        path = Path(path)
        data = save({k: x.contiguous() for k, x in self.tensors.items()}, metadata={"stateform": self.fingerprint})
        write_atomically(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read what `save` wrote. Raises StateformError if the file is missing, truncated or of another kind."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                fingerprint = (file.metadata() or {}).get("stateform")
                require(fingerprint is not None, f"{path} is a safetensors file, but not a state written by Stateform")
                return cls({name: file.get_tensor(name) for name in file.keys()}, str(fingerprint))  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StateformError(f"cannot read a state from {path}: {error}") from None

    def __repr__(self) -> str:
        parts = ", ".join(f"{k} {list(x.shape)}" for k, x in self.tensors.items())
        return f"State({parts}; {self.nbytes:,} bytes)"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it, then a rename."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StateformError(
            f"cannot write {path}: {error.strerror or error}; give a path in a folder you can write to"
        ) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # mkstemp makes a private file; give it the permissions that open() would.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise StateformError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


pytree.register_pytree_node(
    State,
    lambda s: (list(s.tensors.values()), (tuple(s.tensors), s.fingerprint)),
    lambda xs, context: State(dict(zip(context[0], xs, strict=True)), context[1]),
)
