"""The source of the package as syntax trees, and who imports whom."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "stateform"
SOURCE = Path(__file__).parents[2] / "src" / PACKAGE
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module below the package; that of a folder for its __init__."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The file as a syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, folder: list[str]) -> Iterator[tuple[int, str, str]]:
    """The line, the module below the package, and the name in it ("" for the module itself) of each inner import.

    Args:
        tree: of one file. Imports inside functions and those for type checking count like any other.
        folder: the parts of the package that relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == PACKAGE:
                    yield node.lineno, rest, ""
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = folder[: len(folder) - node.level + 1]
            elif node.module and node.module.split(".")[0] == PACKAGE:
                start = []
            else:
                continue
            named = node.module or ""
            parts = named.split(".") if node.level else named.split(".")[1:]
            module = ".".join(x for x in (*start, *parts) if x)
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                yield (node.lineno, inner, "") if inner in MODULES else (node.lineno, module, alias.name)


def imports_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """The imports of a file of the package."""
    return imports(tree_of(path), list(path.relative_to(SOURCE).parent.parts))
