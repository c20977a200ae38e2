"""Specifications of layers and tasks: "mamba2(d_state=16)", a name with options, or "path/file.py:Class"."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import StateformError, nearest, require


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Read the name and the options of `name` or `name(option=value, ...)`; the values are Python literals.

    Raises:
        StateformError: brackets that hold anything else.
    """
    head, bracket, rest = spec.partition("(")
    if not bracket or (".py" in rest and not rest.endswith(")")):  # a folder may have brackets in its name
        return spec.strip(), {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args
        options = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
        assert len(options) == len(call.keywords)
        return head.strip(), options
    except (SyntaxError, ValueError, AssertionError, RecursionError, MemoryError):
        raise StateformError(
            f"cannot read {spec[:200]!r}; expected name(option=value, ...), e.g. qlstm(reversed=True)"
        ) from None


# -- classes in files of the user --------------------------------------------------------------------------------------

USER_MODULE = "stateform_user_"
"""How the names of modules begin that were files of a user."""
_RUN: dict[Path, tuple[int, ModuleType]] = {}
"""Files that were run, as they were at that time (nanoseconds), and what came of it."""


def names_file(head: str) -> bool:
    """True if what stands before the brackets of a specification is `path/file.py:Class` or `path/file.py`."""
    return ".py:" in head or head.endswith(".py")


def was_run(spec: str) -> bool:
    """True if the file that a specification names was run in this process, which is to say: asked for by name."""
    return Path(file_of(spec)).resolve() in _RUN


def class_from_file(spec: str, base: type, what: str, derived: str) -> type:
    """Find the class that `path/file.py:Class` names, or the only one of its kind in `path/file.py`.

    The file is run, again only when it has changed: name only files that you trust.

    Args:
        spec: what names it.
        base: what it is derived from.
        what: what such a class is called.
        derived: what it is to be derived from, in words.

    Raises:
        StateformError: no such file, one that cannot be run, or no such class in it.
    """
    path, name = file_of(spec), spec.rpartition(":")[2] if ".py:" in spec else ""
    module = run_file(path)
    classes = {
        k: v
        for k, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, base) and v.__module__ == module.__name__
    }
    if name:
        known = nearest(name, classes) if classes else f"it defines no {base.__name__}"
        require(name in classes, f"{path} has no {what} {name!r}: {known}")
        return classes[name]
    require(classes, f"{path} defines no {what}; expected a class derived from {derived}")
    many = f"{path} defines {len(classes)} {what}s ({', '.join(classes)}); say which: {path}:Class"
    require(len(classes) == 1, many)
    return next(iter(classes.values()))


def file_of(spec: str) -> str:
    """Find the file of `path/file.py:Class`."""
    return spec.rpartition(":")[0] if ".py:" in spec else spec


def run_file(file: str | Path) -> ModuleType:
    """Run a file of the user's own code, unless that was done since it was changed, and give the module.

    Its classes may then be named as `path/file.py:Class`, also by what is read from a folder.

    Raises:
        StateformError: no such file, or one that cannot be run.
    """
    require(os.path.isfile(file), f"there is no file {file}; expected path/file.py:Class")
    path = Path(file)
    place, changed = path.resolve(), path.stat().st_mtime_ns
    if place in _RUN and _RUN[place][0] == changed:
        return _RUN[place][1]
    module_spec = importlib.util.spec_from_file_location(f"{USER_MODULE}{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module
    try:
        module_spec.loader.exec_module(module)
    except StateformError as error:
        raise StateformError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise StateformError(f"{path} could not be run: {said}; run it with Python to see where") from error
    _RUN[place] = changed, module
    return module
