"""The table of layers: names, classes, and how a name, a class or a file becomes a layer."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from ..errors import StateformError, nearest, require
from ..layer.spec import USER_MODULE, class_from_file, names_file, read_spec

L = TypeVar("L", bound=type[nn.Module])


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    name: str
    cls: type[nn.Module]
    paper: str
    summary: str


REGISTRY: dict[str, Entry] = {}
"""The architectures by the name under which they are registered."""
PAPER = re.compile(r"(.+)  ((?:arXiv|doi) \S+)")
"""The first line of a file that is an architecture: what it is, two spaces, where it comes from."""


def register(name: str, *, paper: str = "") -> Callable[[L], L]:
    """Make the class below known to `sf.build`, `sf.names`, the checks and the command line.

    Args:
        name: lower case, unique (registering the same class again, as a reloaded notebook cell does, replaces it).
        paper: where the architecture comes from (default: what the first line of its file's docstring ends with).

    Raises:
        StateformError: if another class has that name, or what is named is no class of layers.
    """
    plain = isinstance(name, str) and re.fullmatch(r"[\w-]+", name) is not None
    require(plain, f'the name of a layer is {name!r}; expected letters, digits, _ or -, as in @register("my_layer")')

    def add(cls: L) -> L:
        known = REGISTRY.get(name)
        require(
            isinstance(cls, type) and issubclass(cls, nn.Module), f"{cls!r} is no class of layers; register a class"
        )
        same = known is None or known.cls.__qualname__ == cls.__qualname__
        require(same, f"the name {name!r} is taken by {known.cls.__qualname__ if known else ''}; choose another")
        summary, written, _ = described(cls)
        REGISTRY[name] = Entry(name, cls, paper or written, summary)
        return cls

    return add


def described(cls: type[nn.Module]) -> tuple[str, str, str]:
    """Find what a layer says it is: a line, the paper, and the rest, which is its equations.

    The words are those of the file if its docstring begins as `GLA: ...  arXiv 2312.06635` does, else those of the
    class before its `Args`. A class without a docstring has those of its base.
    """
    owner = next(c for c in cls.__mro__ if c.__doc__)
    file = inspect.cleandoc(getattr(sys.modules.get(owner.__module__), "__doc__", None) or "")
    line, _, body = file.partition("\n")
    if found := PAPER.fullmatch(line):
        return found[1], found[2], body.strip("\n")
    line, _, body = inspect.cleandoc(owner.__doc__ or "").partition("\nArgs:\n")[0].partition("\n")
    return line, "", body.strip("\n")


def names() -> list[str]:
    """List the names of all registered layers."""
    return sorted(REGISTRY)


def resolve(spec: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """Find the class and the options of `name`, `name(option=value, ...)` or `path/file.py:Class`.

    Raises:
        StateformError: unknown name (with the nearest), unreadable file, or no such class in it. A file is run: name
            only files that you trust.
    """
    head, options = read_spec(spec)
    if names_file(head):
        return class_from_file(head, nn.Module, "layer", "stateform.Layer or torch.nn.Module"), options
    require(head in REGISTRY, f"unknown layer {head!r}: {nearest(head, REGISTRY)}")
    return REGISTRY[head].cls, options


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def accepted(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """List the arguments that a layer takes."""
    return {k: p for k, p in inspect.signature(cls.__init__).parameters.items() if k != "self"}


def build(spec: str | type[nn.Module] | nn.Module, **options: Any) -> Any:
    """Make a layer.

    Args:
        spec: a registered name (`sf.names()`), with options in brackets if you like (`"qlstm(reversed=True)"`), a file
            `"path/file.py:Class"`, a class, or a layer (returned as it is).
        options: d_model and whatever else the layer takes: n_heads, d_state, ...

    Returns:
        The layer.

    Raises:
        StateformError: unknown name or option (with the nearest ones), or sizes that do not fit.
    """
    if isinstance(spec, nn.Module):
        require(not options, f"{type(spec).__name__} is a layer already; it takes no options")
        return spec
    named = spec if isinstance(spec, str) else getattr(spec, "__name__", repr(spec))
    cls, given = resolve(spec) if isinstance(spec, str) else (spec, {})
    require(
        isinstance(cls, type) and issubclass(cls, nn.Module),
        f"cannot build a layer from {named}; expected a name ({', '.join(names())}), a file path/file.py:Class, "
        "a class of layers or a layer",
    )
    options = {**options, **given}
    known = accepted(cls)
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        for name in options:
            if name not in known:
                raise StateformError(f"{named} has no option {name!r}: {nearest(name, known)}")
    missing = [
        k
        for k, p in known.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and k not in options
    ]
    require(not missing, f"{named} needs a value for {', '.join(missing)}")
    try:
        return cls(**options)
    except StateformError:
        raise
    except Exception as error:
        if not cls.__module__.startswith(USER_MODULE):
            raise
        raise StateformError(f"{named} could not be made: {_one_line(error)}") from error
