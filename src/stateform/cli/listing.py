"""Lists of layers, tasks and questions, read from the source: to import them takes torch, and seconds."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent


def layers() -> list[str]:
    """List the layers that come with the package, as `sf.names()` does."""
    return sorted(_registered("architectures", "register"))


def tasks() -> dict[str, str]:
    """List the tasks that come with the package, by name, with a line on each."""
    return dict(sorted(_registered("tasks", "register_task").items()))


def questions() -> list[str]:
    """List the questions of an analysis, in the order of the report."""
    asked = [_value(file, "QUESTION") for file in sorted((_PACKAGE / "studies" / "questions").glob("*.py"))]
    found = [
        (next((word.value.value for word in call.keywords if word.arg == "order"), math.inf), call.args[0].value)
        for call in asked
        if call is not None
    ]
    return [name for _, name in sorted(found)]


def constant(file: str, name: str) -> Any:
    """Read the value that a module assigns to a name; it must be a literal."""
    found = _value(_PACKAGE / file, name)
    if found is None:
        raise LookupError(f"{file} assigns no {name}")
    return ast.literal_eval(found)


def _registered(folder: str, decorator: str) -> dict[str, str]:
    """List the classes under a decorator, in a folder and those below: registered name and first line of docstring."""
    return {
        str(call.args[0].value): (ast.get_docstring(node) or "").split("\n")[0]
        for file in sorted((_PACKAGE / folder).rglob("*.py"))
        for node in _parsed(file)
        if isinstance(node, ast.ClassDef)
        for call in node.decorator_list
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator
        if isinstance(call.args[0], ast.Constant)
    }


def _value(file: Path, name: str) -> Any:
    """Find the value assigned to a name at the top of a module, as a syntax tree; None if there is none."""
    for node in _parsed(file):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[attr-defined]
    return None


def _parsed(file: Path) -> Iterator[ast.stmt]:
    yield from ast.parse(file.read_text(encoding="utf-8")).body
